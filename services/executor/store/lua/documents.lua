-- What a neighbour wrote at a key: its type and its content, which is fields and values in turn, or a text.  Of a
-- document over the bound the type is "oversize", and the content is its size.
local LARGEST_BYTES, MOST_FIELDS = 16 * 1024 * 1024, 1000

local function hash_at(key)
  if redis.call('HLEN', key) > MOST_FIELDS then return 'oversize', MOST_FIELDS .. ' fields' end
  local names, size = redis.call('HKEYS', key), 0
  for _, name in ipairs(names) do size = size + redis.call('HSTRLEN', key, name) end
  if size > LARGEST_BYTES then return 'oversize', size .. ' bytes' end
  table.sort(names)
  local values, content = redis.call('HMGET', key, unpack(names)), {}
  for i, name in ipairs(names) do
    content[2 * i - 1], content[2 * i] = name, values[i]
  end
  return 'hash', content
end

local function document_at(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then return hash_at(key) end
  if kind ~= 'string' then return kind, '' end
  local size = redis.call('STRLEN', key)
  if size > LARGEST_BYTES then return 'oversize', size .. ' bytes' end
  return kind, redis.call('GET', key)
end
