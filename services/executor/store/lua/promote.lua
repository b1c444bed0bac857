-- Attempts whose time has come go back to the queue, and so does one order for each limit that has
-- had some waiting for a while: should the run that was to make room be gone, nobody waits for ever.
--
-- KEYS  1 retries  2 nudges
-- ARGV  1 how many at most
-- returns {how many, ms until the next is due or -1}
-- include types.lua
-- include limits.lua
redis.replicate_commands()
local wrong = misfit(KEYS[1], 'zset', KEYS[2], 'zset',
  QUEUES .. 'high', 'stream', QUEUES .. 'normal', 'stream', QUEUES .. 'low', 'stream')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, order in ipairs(due) do
  redis.call('XADD', queue_of(order), '*', 'order', order)
  redis.call('ZREM', KEYS[1], order)
end
for _, limit in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local blocked = BLOCKED .. limit
  unblock(blocked)
  if usable(blocked, 'list') and redis.call('EXISTS', blocked) == 1 then
    redis.call('ZADD', KEYS[2], now + NUDGE_MS, limit)
  else
    redis.call('ZREM', KEYS[2], limit)
  end
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if #next == 0 then return {#due, -1} end
return {#due, math.max(0, next[2] - now)}
