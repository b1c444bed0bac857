-- An attempt failed and another one follows later.
--
-- KEYS  1 queue  2 record  3 open runs  4 retries  5 metrics list  6 journal
-- ARGV  1 group  2 entry  3 timestamp of the run  4 lease  5 order of the next attempt (JSON)
--       6 ms until it is due  7 metrics cap  8 journal cap
--       9 id of the run  10 ms the metrics are kept  11 number of events
--       12.. events (JSON), then fields of the record
-- returns {"retrying", ms when it is due} | {"stale", 0}
-- include types.lua
-- include events.lua
-- include limits.lua
redis.replicate_commands()
local mute = silenced('fullsend:metrics')
if mute then return mute end
local wrong = misfit(KEYS[1], 'stream', KEYS[2], 'hash', KEYS[3], 'zset', KEYS[4], 'zset')
if wrong then return wrong end
local held = redis.call('HMGET', KEYS[2], 'lease', 'status', 'limits')
if held[1] ~= ARGV[4] or held[2] ~= 'running' then
  local stored = redis.call('ZSCORE', KEYS[4], ARGV[5]) -- when this very call had got through before
  return stored and {'retrying', tonumber(stored)} or {'stale', 0}
end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[6]
local first_field = 12 + ARGV[11]
redis.call('HSET', KEYS[2], 'lease', '', 'retry_at', due, unpack(ARGV, first_field))
redis.call('ZADD', KEYS[4], due, ARGV[5])
redis.call('ZADD', KEYS[3], 0, ARGV[3])
release(held[3], ARGV[9])
emit_metrics(KEYS[5], KEYS[6], 12, first_field - 1, ARGV[7], ARGV[8], ARGV[10])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return {'retrying', due}
