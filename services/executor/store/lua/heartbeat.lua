-- A worker says that it lives, and learns who doesn't any more.
--
-- KEYS  1 workers  2 listeners
-- ARGV  1 worker  2 ms until it counts as dead  3 "1" while it listens for triggers
-- returns names of the dead
redis.replicate_commands()
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
if ARGV[3] == '1' then redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1]) end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
