-- Attempts whose time has come go back to the queue.
--
-- KEYS  1 queue  2 retries
-- ARGV  1 how many at most
-- returns {how many, ms until the next is due or -1}
redis.replicate_commands()
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, order in ipairs(due) do
  redis.call('XADD', KEYS[1], '*', 'order', order)
  redis.call('ZREM', KEYS[2], order)
end
local next = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if #next == 0 then return {#due, -1} end
return {#due, math.max(0, next[2] - now)}
