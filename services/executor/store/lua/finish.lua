-- Ends a run: everything that a neighbour can observe of the end happens here, or nothing does.
--
-- KEYS  queue record open_runs metrics journal
-- ARGV  entry timestamp lease experiment_id state result kept_ms metrics_cap journal_cap run events[] fields[]
--   lease           "" for a run that never began
--   state           the experiment's next one, or "" to leave it
--   result, events  JSON
--   fields          of the record
-- returns {"finished" | "stale" (the attempt was taken away; the outcome is dropped)
--          | "done" (this call was executed before), keys that it did without ...};
--         {"uncompiled", document}: see documents.lua.
--         A run ends also where one of its keys has another type than it should have.
-- include events.lua
-- include documents.lua
-- include orders.lua
local mute = silenced('fullsend:metrics') or silenced('fullsend:experiment_results')
if mute then return mute end
local readable = try(record, 'hash', 'HMGET', 'lease', 'status', 'limits')
local held = readable or {}
if lease ~= '' then
  if held[1] ~= lease then return {'stale', unpack(skipped)} end
  if held[2] ~= 'running' then return {'done'} end
elseif #redis.call('XRANGE', queue, entry, entry) == 0 then
  return {'done'}
end

local is_last = lease ~= '' and (try(open_runs, 'zset', 'ZCOUNT', 1, 1) or 1) <= 1
if is_last and not end_running(experiment_id, state) then return uncompiled(experiment_id) end

if readable then
  redis.call('HSET', record, unpack(fields))
  redis.call('PEXPIRE', record, kept_ms)
end
emit_metrics(metrics, journal, events, metrics_cap, journal_cap, kept_ms)
emit_result(journal, result, journal_cap)
try(open_runs, 'zset', 'ZREM', timestamp)
release(held[3], run)
try(queue, 'stream', 'XACK', 'executors', entry)
try(queue, 'stream', 'XDEL', entry)
return {'finished', unpack(skipped)}
