-- Executes a function for each item of a batch, and answers each of them.

-- `items` are MessagePack maps.  One that fails is answered with its error, and the others are done.
local function for_each(items, act)
  local answers = {}
  for i, item in ipairs(items) do
    local is_done, answer = pcall(act, cmsgpack.unpack(item))
    if not is_done and type(answer) ~= 'table' then answer = redis.error_reply(answer) end
    answers[i] = answer
  end
  return answers
end
