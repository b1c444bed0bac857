-- What is at a key, whichever type it has, in one trip.
--
-- KEYS  any number
-- returns a pair for each key: {type, content}: fields and values of a hash, a string, else ""
local answer = {}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  local content = ''
  if kind == 'hash' then content = redis.call('HGETALL', key) end
  if kind == 'string' then content = redis.call('GET', key) end
  answer[i] = {kind, content}
end
return answer
