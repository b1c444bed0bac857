-- Included by others.  What a neighbour has written at a key, asked for by `call`: its type and its content.
local function document(key, call)
  local kind = call('TYPE', key).ok
  if kind == 'hash' then return kind, call('HGETALL', key) end
  if kind == 'string' then return kind, call('GET', key) end
  return kind, ''
end
