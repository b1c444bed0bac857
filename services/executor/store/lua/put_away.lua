-- Puts an order away that nobody can read, and reports it once.
--
-- KEYS  queue journal record open_runs
-- ARGV  entry result journal_cap timestamp run experiment_id state kept_ms fields[]
--   result     JSON
--   timestamp  of the run that the order names, or ""
--   state      the experiment's next one
--   fields     of the record
-- returns "answered" | "done" (it was reported before, or the run has ended); {"uncompiled", document}: see documents.lua
-- include events.lua
-- include documents.lua
-- include orders.lua
-- include run_index.lua
local mute = silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(queue, 'stream')
if wrong then return wrong end
local function put_away()
  redis.call('XDEL', queue, entry)
  return redis.call('XACK', queue, 'executors', entry)
end
if timestamp == '' then
  if put_away() == 0 then return 'done' end
  emit_result(journal, result, journal_cap)
  return 'answered'
end

local has_record, has_open = usable(record, 'hash'), usable(open_runs, 'zset')
local held = has_record and redis.call('HMGET', record, 'status', 'lease', 'limits') or {}
local status, lease = held[1], held[2] or ''
if lease ~= '' and status == 'running' and string.sub(lease, -#entry - 1) ~= '/' .. entry then
  put_away() -- another delivery of the run is under way; that one reports its end
  return 'done'
end
local over = status and status ~= 'running'
-- A run that has begun, or waits for another attempt, has left its experiment `running`.
local open = has_open and redis.call('ZCOUNT', open_runs, 1, 1) or 0
local others = lease ~= '' and open - 1 or open
if status and not over and others <= 0 and not end_running(experiment_id, state) then
  return uncompiled(experiment_id)
end
local was_held = put_away() == 1
if has_open then redis.call('ZREM', open_runs, timestamp) end
if over or not was_held then return 'done' end
release(held[3], run)
if has_record then
  redis.call('HSET', record, unpack(fields))
  redis.call('PEXPIRE', record, kept_ms)
  index_run(run, experiment_id, timestamp)
  index_end(run, timestamp, fields)
end
emit_result(journal, result, journal_cap)
return 'answered'
