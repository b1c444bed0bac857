-- An order that nobody can read is put away, and answered once.
--
-- KEYS  1 queue  2 journal  3 record  4 experiment  5 open runs; 3.. only where the order names its run
-- ARGV  1 group  2 entry  3 result (JSON)  4 journal cap  5 timestamp of the run, or ""  6 id of the run
--       7 ms the record is kept
--       8 state of the experiment, or "" to leave it  9 expected document  10 replacement  (see state.lua)
--       11.. fields of the record
-- returns "answered" | "done" (somebody had answered, or the run has an end) | "conflict"
-- include types.lua
-- include state.lua
-- include events.lua
-- include limits.lua
redis.replicate_commands()
local mute = silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(KEYS[1], 'stream')
if wrong then return wrong end
local function put_away()
  redis.call('XDEL', KEYS[1], ARGV[2])
  return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
end
if ARGV[5] == '' then
  if put_away() == 0 then return 'done' end
  emit_result(KEYS[2], ARGV[3], ARGV[4])
  return 'answered'
end

local has_record, has_open = usable(KEYS[3], 'hash'), usable(KEYS[5], 'zset')
local held = has_record and redis.call('HMGET', KEYS[3], 'status', 'lease', 'limits') or {}
local status, lease = held[1], held[2] or ''
if lease ~= '' and status == 'running' and string.sub(lease, -#ARGV[2] - 1) ~= '/' .. ARGV[2] then
  put_away() -- another delivery of the run is under way; that one reports its end
  return 'done'
end
-- A run that waits for another attempt has left its experiment `running`.
local was_last = status and not (has_open and redis.call('ZCOUNT', KEYS[5], 1, 1) > 0)
local over = status and status ~= 'running'
if was_last and not over and move_state(KEYS[4], 'running', ARGV[8], ARGV[9], ARGV[10]) == 'conflict' then
  return 'conflict'
end
local was_held = put_away() == 1
if has_open then redis.call('ZREM', KEYS[5], ARGV[5]) end
if over or not was_held then return 'done' end
release(held[3], ARGV[6])
if has_record then
  redis.call('HSET', KEYS[3], unpack(ARGV, 11))
  redis.call('PEXPIRE', KEYS[3], ARGV[7])
end
emit_result(KEYS[2], ARGV[3], ARGV[4])
return 'answered'
