-- A worker says that it lives, and learns who doesn't any more.
--
-- When Redis was away, all were silent.  Who comes back first must not take the others
-- for dead: it waits for as long as they may be silent.
--
-- KEYS  1 workers  2 listeners  3 silence of this worker
-- ARGV  1 worker  2 ms until it counts as dead  3 "1" while it listens for triggers
-- returns names of the dead
-- include types.lua
redis.replicate_commands()
local wrong = misfit(KEYS[1], 'zset', KEYS[2], 'zset', KEYS[3], 'string')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
if ARGV[3] == '1' then redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1]) end
if expired < now then redis.call('SET', KEYS[3], '1', 'PX', ARGV[2]) end
if redis.call('EXISTS', KEYS[3]) == 1 then return {} end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
