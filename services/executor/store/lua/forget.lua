-- Takes a worker off the list that has left, or that is dead and holds no claims any more.
--
-- KEYS  workers listeners slots tools queues[]
-- ARGV  worker group
-- returns 1 when it is off the list, 0 while it still holds claims
-- include types.lua
local wrong = misfit(workers, 'zset', listeners, 'zset', slots, 'hash')
if wrong then return wrong end
redis.call('ZREM', listeners, worker)
for _, queue in ipairs(queues) do
  local held = redis.pcall('XPENDING', queue, group, '-', '+', 1, worker)
  local has_group = not (held.err and string.find(held.err, 'NOGROUP', 1, true))
  wrong = has_group and refused(held, queue, 'stream')
  if wrong then return wrong end
  if has_group and #held > 0 then return 0 end
end
redis.call('ZREM', workers, worker)
redis.call('HDEL', slots, worker)
redis.call('DEL', tools)
for _, queue in ipairs(queues) do redis.pcall('XGROUP', 'DELCONSUMER', queue, group, worker) end -- if there is a group
return 1
