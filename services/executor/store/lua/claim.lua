-- A worker takes orders, without waiting for any.
--
-- KEYS  queues, the preferred one first
-- ARGV  1 group  2 worker  3 how many
-- returns triples {queue, entry, fields}
redis.replicate_commands()
local claims = {}
for _, queue in ipairs(KEYS) do
  local free = ARGV[3] - #claims
  if free <= 0 then break end
  local answer = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', free, 'STREAMS', queue, '>')
  for _, entry in ipairs(answer and answer[1][2] or {}) do
    claims[#claims + 1] = {queue, entry[1], entry[2]}
  end
end
return claims
