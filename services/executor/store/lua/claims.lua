-- Hands orders out to a worker.
-- include documents.lua

-- Takes up to `count` orders from the queues, in their order, without waiting for any.
-- Returns triples {queue, entry, fields}, and triples {id, type, content} of their experiments. An experiment is
-- left out if it can't be read here, or if its id can't be told from the text of the order.
local function hand_out(queues, group, worker, count)
  local claims, experiments, seen = {}, {}, {}
  for _, queue in ipairs(queues) do
    local free = count - #claims
    if free <= 0 then break end
    local answer = redis.call('XREADGROUP', 'GROUP', group, worker, 'COUNT', free, 'STREAMS', queue, '>')
    for _, entry in ipairs(answer and answer[1][2] or {}) do
      local fields = entry[2]
      claims[#claims + 1] = {queue, entry[1], fields}
      local id = fields[1] == 'order' and string.match(fields[2], '^[^\\]-"experiment_id":"([^"\\]+)"')
      if id and not seen[id] then
        seen[id] = true
        -- An error here must not stop the script: the orders are handed out by now.
        local kind, content = document('experiments:' .. id, redis.pcall)
        local is_read = kind and not (type(content) == 'table' and content.err)
        if is_read then experiments[#experiments + 1] = {id, kind, content} end
      end
    end
  end
  return claims, experiments
end
