-- Queues the attempts that are due; and one order for each limit under which some have waited for a while, in case
-- the run that was to make room is gone.
--
-- KEYS  retries nudges
-- ARGV  most
-- returns {how many, ms until the next one is due or -1}
-- include orders.lua
local wrong = misfit(retries, 'zset', nudges, 'zset',
  QUEUES .. 'high', 'stream', QUEUES .. 'normal', 'stream', QUEUES .. 'low', 'stream')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', retries, '-inf', now, 'LIMIT', 0, most)
for _, order in ipairs(due) do
  queue_again(order)
  redis.call('ZREM', retries, order)
end
for _, limit in ipairs(redis.call('ZRANGEBYSCORE', nudges, '-inf', now, 'LIMIT', 0, most)) do
  local blocked = BLOCKED .. limit
  unblock(blocked)
  if usable(blocked, 'list') and redis.call('EXISTS', blocked) == 1 then
    redis.call('ZADD', nudges, now + NUDGE_MS, limit)
  else
    redis.call('ZREM', nudges, limit)
  end
end
local next = redis.call('ZRANGE', retries, 0, 0, 'WITHSCORES')
if #next == 0 then return {#due, -1} end
return {#due, math.max(0, next[2] - now)}
