-- Answer a message that can't be a run, once.
--
-- KEYS  1 admitted bitmap  2 journal
-- ARGV  1 bit of the message in the bitmap  2 ms the bitmap is kept  3 result (JSON)  4 journal cap
-- returns 1 when answered, 0 when another worker had answered
-- include types.lua
-- include events.lua
redis.replicate_commands()
local mute = silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(KEYS[1], 'string')
if wrong then return wrong end
local seen = redis.call('SETBIT', KEYS[1], ARGV[1], 1)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if seen == 1 then return 0 end
emit_result(KEYS[2], ARGV[3], ARGV[4])
return 1
