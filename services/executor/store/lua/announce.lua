-- Say what is wrong with a key, once.
--
-- KEYS  1 journal  2 mark of this very call
-- ARGV  1 result (JSON)  2 journal cap  3 ms the mark is kept
-- include types.lua
-- include events.lua
redis.replicate_commands()
local mute = silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(KEYS[2], 'string')
if wrong then return wrong end
if not redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[3]) then return end
emit_result(KEYS[1], ARGV[1], ARGV[2])
