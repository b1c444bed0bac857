-- Ends a run: everything that a neighbour can observe of the end happens here, or nothing does.
--
-- KEYS  queue record experiment open_runs metrics journal
-- ARGV  group entry timestamp lease state expected replacement result kept_ms metrics_cap journal_cap run
-- ARGV  events[] fields[]
--   timestamp, run  of the run
--   lease           of the attempt, or "" for a run that never began
--   state, expected, replacement  of the experiment, see state.lua
--   result, events  JSON
--   kept_ms         how long the record and the metrics are kept
--   fields          of the record
-- returns {"finished" | "stale" (the attempt was taken away; the outcome is dropped)
--          | "done" (this very call got through before) | "conflict", keys that it did without ...}:
--         a run ends even if somebody has made another type of one of its keys
-- include types.lua
-- include state.lua
-- include events.lua
-- include limits.lua
local mute = silenced('fullsend:metrics') or silenced('fullsend:experiment_results')
if mute then return mute end
local current = try(record, 'hash', 'HMGET', 'lease', 'status', 'limits')
local held = current or {}
if lease ~= '' then
  if held[1] ~= lease then return {'stale', unpack(skipped)} end
  if held[2] ~= 'running' then return {'done'} end
elseif #redis.call('XRANGE', queue, entry, entry) == 0 then
  return {'done'}
end

local is_last = lease ~= '' and (try(open_runs, 'zset', 'ZCOUNT', 1, 1) or 1) <= 1
if is_last and move_state(experiment, 'running', state, expected, replacement) == 'conflict' then
  return {'conflict'}
end

if current then
  redis.call('HSET', record, unpack(fields))
  redis.call('PEXPIRE', record, kept_ms)
end
emit_metrics(metrics, journal, events, metrics_cap, journal_cap, kept_ms)
emit_result(journal, result, journal_cap)
try(open_runs, 'zset', 'ZREM', timestamp)
release(held[3], run)
try(queue, 'stream', 'XACK', group, entry)
try(queue, 'stream', 'XDEL', entry)
return {'finished', unpack(skipped)}
