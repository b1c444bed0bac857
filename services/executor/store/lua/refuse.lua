-- Publishes a result for a message that can't become a run, once.
--
-- KEYS  admitted journal
--   admitted  a bitmap
-- ARGV  bit bitmap_kept_ms result journal_cap
--   bit     of the message in the bitmap
--   result  JSON
-- returns 1 when it is published, 0 when it was published before
-- include events.lua
local mute = silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(admitted, 'string')
if wrong then return wrong end
local seen = redis.call('SETBIT', admitted, bit, 1)
redis.call('PEXPIRE', admitted, bitmap_kept_ms)
if seen == 1 then return 0 end
emit_result(journal, result, journal_cap)
return 1
