-- Report metric events of a run under way, each batch once.
--
-- KEYS  1 metrics list  2 journal  3 record
-- ARGV  1 metrics cap  2 journal cap  3 ms the metrics are kept  4 mark of this batch  5.. events (JSON)
-- include events.lua
redis.replicate_commands()
local mute = silenced('fullsend:metrics')
if mute then return mute end
if redis.call('HGET', KEYS[3], 'emitted') == ARGV[4] then return end
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('HSET', KEYS[3], 'emitted', ARGV[4]) end
for i = 5, #ARGV do emit_metric(KEYS[1], KEYS[2], ARGV[i], ARGV[1], ARGV[2], ARGV[3]) end
