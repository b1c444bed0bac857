-- A worker has left, or is dead and holds nothing any more.
--
-- KEYS  1 workers  2 listeners  3.. queues
-- ARGV  1 worker  2 group
-- returns 1 when it is forgotten, 0 while it still holds claims
-- include types.lua
-- include held.lua
local wrong = misfit(KEYS[1], 'zset', KEYS[2], 'zset')
if wrong then return wrong end
redis.call('ZREM', KEYS[2], ARGV[1])
for i = 3, #KEYS do
  local held, wrong = held_by(ARGV[1], KEYS[i], ARGV[2], '-', '+')
  if wrong then return wrong end
  if held > 0 then return 0 end
end
redis.call('ZREM', KEYS[1], ARGV[1])
for i = 3, #KEYS do redis.pcall('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[2], ARGV[1]) end -- if there is the group
return 1
