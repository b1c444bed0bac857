-- Report metric events of an attempt under way, each batch once.
--
-- KEYS  1 metrics list  2 journal  3 record
-- ARGV  1 metrics cap  2 journal cap  3 ms the metrics are kept  4 lease  5 mark of this batch
--       6.. events (JSON)
-- returns 1 when they were said, 0 when the attempt has been taken away or is over; then nothing is said
-- include types.lua
-- include events.lua
redis.replicate_commands()
local mute = silenced('fullsend:metrics')
if mute then return mute end
local held = redis.pcall('HMGET', KEYS[3], 'lease', 'status', 'emitted')
local wrong = refused(held, KEYS[3], 'hash')
if wrong then return wrong end
if held[1] ~= ARGV[4] or held[2] ~= 'running' then return 0 end
if held[3] == ARGV[5] then return 1 end
redis.call('HSET', KEYS[3], 'emitted', ARGV[5])
emit_metrics(KEYS[1], KEYS[2], 6, #ARGV, ARGV[1], ARGV[2], ARGV[3])
return 1
