-- Reads what a neighbour wrote at a key.

-- Returns the type and the content: fields and values of a hash, the text of a string, else "".
-- `call` is redis.call or redis.pcall.
local function document(key, call)
  local kind = call('TYPE', key).ok
  if kind == 'hash' then return kind, call('HGETALL', key) end
  if kind == 'string' then return kind, call('GET', key) end
  return kind, ''
end
