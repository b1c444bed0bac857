-- A worker that has subscribed takes its place in the order of triggers.
--
-- The marker gives everybody who hears it the same point to count messages from.
-- Messages that the joiner heard before any marker are its own to admit only when
-- nobody else could have identified them.
--
-- KEYS  1 listeners
-- ARGV  1 worker  2 marker  3 channel of the markers  4 ms a listener is believed to live
-- returns 1 when the joiner answers for what it heard before, else 0
redis.replicate_commands()
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
local others = redis.call('ZCARD', KEYS[1])
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
local heard_by = redis.call('PUBLISH', ARGV[3], ARGV[2])
if others == 0 or heard_by <= 1 then return 1 end
return 0
