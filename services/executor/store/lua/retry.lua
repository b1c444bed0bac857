-- Ends a failed attempt that another one follows later.
--
-- KEYS  queue record open_runs retries metrics journal
-- ARGV  entry timestamp lease order delay_ms metrics_cap journal_cap run kept_ms events[] fields[]
--   order   of the next attempt
--   delay_ms  0 is taken of a run that was cancelled: it comes again to be ended
--   events  JSON
--   fields  of the record
-- returns {"retrying", ms when it is due} | {"stale", 0}
-- include events.lua
-- include orders.lua
local mute = silenced('fullsend:metrics')
if mute then return mute end
local wrong = misfit(queue, 'stream', record, 'hash', open_runs, 'zset', retries, 'zset')
if wrong then return wrong end
local held = redis.call('HMGET', record, 'lease', 'status', 'limits', 'cancel')
if held[1] ~= lease or held[2] ~= 'running' then
  local stored = redis.call('ZSCORE', retries, order) -- when this very call had got through before
  return stored and {'retrying', tonumber(stored)} or {'stale', 0}
end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + (held[4] and 0 or delay_ms)
redis.call('HSET', record, 'lease', '', 'retry_at', due, unpack(fields))
redis.call('ZADD', retries, due, order)
redis.call('ZADD', open_runs, 0, timestamp)
release(held[3], run)
emit_metrics(metrics, journal, events, metrics_cap, journal_cap, kept_ms)
redis.call('XACK', queue, 'executors', entry)
redis.call('XDEL', queue, entry)
return {'retrying', due}
