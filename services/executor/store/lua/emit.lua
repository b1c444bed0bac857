-- Reports metric events of an attempt under way, each batch once.
--
-- KEYS  metrics journal record
-- ARGV  metrics_cap journal_cap kept_ms lease batch events[]
--   kept_ms  how long the metrics are kept
--   batch    identifies this batch
--   events   JSON
-- returns 1 when they are reported, 0 when the attempt was taken away or is over and nothing is reported
-- include events.lua
local mute = silenced('fullsend:metrics')
if mute then return mute end
local held = redis.pcall('HMGET', record, 'lease', 'status', 'emitted')
local wrong = refused(held, record, 'hash')
if wrong then return wrong end
if held[1] ~= lease or held[2] ~= 'running' then return 0 end
if held[3] == batch then return 1 end
redis.call('HSET', record, 'emitted', batch)
emit_metrics(metrics, journal, events, metrics_cap, journal_cap, kept_ms)
return 1
