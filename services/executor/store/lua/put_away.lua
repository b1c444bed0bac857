-- Removes an order that can't be read, and answers it once.
--
-- KEYS  queue journal run_keys[]
--   run_keys  record, experiment, open runs; empty when the order does not name its run
-- ARGV  group entry result journal_cap timestamp run kept_ms state expected replacement fields[]
--   result          JSON
--   timestamp, run  of the run, or "" when the order does not name it
--   kept_ms         how long the record is kept
--   state, expected, replacement  of the experiment, see state.lua
--   fields          of the record
-- returns "answered" | "done" (it was answered before, or the run has an end) | "conflict"
-- include types.lua
-- include state.lua
-- include events.lua
-- include limits.lua
local mute = silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(queue, 'stream')
if wrong then return wrong end
local function put_away()
  redis.call('XDEL', queue, entry)
  return redis.call('XACK', queue, group, entry)
end
if timestamp == '' then
  if put_away() == 0 then return 'done' end
  emit_result(journal, result, journal_cap)
  return 'answered'
end

local record, experiment, open_runs = unpack(run_keys)
local has_record, has_open = usable(record, 'hash'), usable(open_runs, 'zset')
local held = has_record and redis.call('HMGET', record, 'status', 'lease', 'limits') or {}
local status, lease = held[1], held[2] or ''
if lease ~= '' and status == 'running' and string.sub(lease, -#entry - 1) ~= '/' .. entry then
  put_away() -- another delivery of the run is under way; that one reports its end
  return 'done'
end
-- While a run waits for another attempt, its experiment stays `running`.
local was_last = status and not (has_open and redis.call('ZCOUNT', open_runs, 1, 1) > 0)
local over = status and status ~= 'running'
if was_last and not over and move_state(experiment, 'running', state, expected, replacement) == 'conflict' then
  return 'conflict'
end
local was_held = put_away() == 1
if has_open then redis.call('ZREM', open_runs, timestamp) end
if over or not was_held then return 'done' end
release(held[3], run)
if has_record then
  redis.call('HSET', record, unpack(fields))
  redis.call('PEXPIRE', record, kept_ms)
end
emit_result(journal, result, journal_cap)
return 'answered'
