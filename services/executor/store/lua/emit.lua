-- Report metric events of a run under way, each batch once.
--
-- KEYS  1 metrics list  2 journal  3 record
-- ARGV  1 metrics cap  2 journal cap  3 mark of this batch  4.. events (JSON)
-- include events.lua
redis.replicate_commands()
local mute = silenced('fullsend:metrics')
if mute then return mute end
if redis.call('HGET', KEYS[3], 'emitted') == ARGV[3] then return end
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('HSET', KEYS[3], 'emitted', ARGV[3]) end
for i = 4, #ARGV do emit_metric(KEYS[1], KEYS[2], ARGV[i], ARGV[1], ARGV[2]) end
