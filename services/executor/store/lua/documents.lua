-- Included by others.  What a neighbour has written at a key: {type, content}.
local function document(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then return {kind, redis.call('HGETALL', key)} end
  if kind == 'string' then return {kind, redis.call('GET', key)} end
  return {kind, ''}
end
