-- Publishes a result about a key that can't be read, once.
--
-- KEYS  journal mark
-- ARGV  result journal_cap mark_kept_ms
--   mark    of this very call
--   result  JSON
-- include events.lua
local mute = silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(mark, 'string')
if wrong then return wrong end
if not redis.call('SET', mark, '1', 'NX', 'PX', mark_kept_ms) then return end
emit_result(journal, result, journal_cap)
