-- Reports the end of a run of which Redis has lost everything, once.
--
-- KEYS  record metrics journal
-- ARGV  lease kept_ms metrics_cap journal_cap result run experiment_id timestamp events[] fields[]
--   result, events  JSON
--   fields          of the record
-- returns 1 when it is reported; 0 when the record says that the run is somebody else's
-- include events.lua
-- include run_index.lua
local mute = silenced('fullsend:metrics') or silenced('fullsend:experiment_results')
if mute then return mute end
local known = redis.pcall('HMGET', record, 'lease', 'status')
local wrong = refused(known, record, 'hash')
if wrong then return wrong end
if known[1] == lease and known[2] and known[2] ~= 'running' then return 1 end -- by a call whose answer was lost
if known[1] or known[2] then return 0 end -- without them, it has only what its worker added after the loss
redis.call('HSET', record, 'lease', lease, unpack(fields))
redis.call('PEXPIRE', record, kept_ms)
index_run(run, experiment_id, timestamp)
index_end(run, timestamp, fields)
emit_metrics(metrics, journal, events, metrics_cap, journal_cap, kept_ms)
emit_result(journal, result, journal_cap)
return 1
