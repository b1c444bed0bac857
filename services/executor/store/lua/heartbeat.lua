-- Records that a worker is alive, and tells it which workers are dead.
--
-- While Redis is away, every heartbeat is missed. The first worker to come back must not take the others for dead:
-- it learns of none until they had time to come back as well.
--
-- KEYS  workers listeners slots silence tools
--   tools    of this worker, which are told as long as its heartbeat holds
--   silence  exists after this worker missed its own heartbeat
-- ARGV  worker ttl_ms is_listening count
--   ttl_ms        when the worker counts as dead
--   is_listening  "1" while it listens for triggers
--   count         how many runs at once it takes
-- returns the names of dead workers
-- include types.lua
local wrong = misfit(workers, 'zset', listeners, 'zset', slots, 'hash', silence, 'string')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = tonumber(redis.call('ZSCORE', workers, worker) or now)
redis.call('ZADD', workers, now + ttl_ms, worker)
redis.call('HSET', slots, worker, count)
redis.call('PEXPIRE', tools, ttl_ms)
if is_listening == '1' then redis.call('ZADD', listeners, now + ttl_ms, worker) end
if expired < now then redis.call('SET', silence, '1', 'PX', ttl_ms) end
if redis.call('EXISTS', silence) == 1 then return {} end
return redis.call('ZRANGEBYSCORE', workers, '-inf', '(' .. now)
