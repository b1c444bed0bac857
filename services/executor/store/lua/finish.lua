-- A run ends: everything a neighbour can observe of it happens here, or nothing does.
--
-- KEYS  1 queue  2 record  3 experiment  4 open runs  5 metrics list  6 journal
-- ARGV  1 group  2 entry  3 timestamp of the run  4 lease, or "" for a run that never began
--       5 state of the experiment, or "" to leave it  6 expected document  7 replacement  (see state.lua)
--       8 result (JSON)  9 ms the record and the metrics are kept  10 metrics cap  11 journal cap
--       12 id of the run  13 number of events  14.. events (JSON), then fields of the record
-- returns {"finished" | "stale" (the attempt had been taken away; the outcome is dropped)
--          | "done" (this very call had got through before) | "conflict", keys that it did without ...}:
--         a run comes to its end also where somebody has made something else of one of its keys
-- include types.lua
-- include state.lua
-- include events.lua
redis.replicate_commands()
local mute = silenced('fullsend:metrics') or silenced('fullsend:experiment_results')
if mute then return mute end
local lease, state = ARGV[4], ARGV[5]
local record = try(KEYS[2], 'hash', 'HMGET', 'lease', 'status', 'limits')
local held = record or {}
if lease ~= '' then
  if held[1] ~= lease then return {'stale', unpack(skipped)} end
  if held[2] ~= 'running' then return {'done'} end
elseif #redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2]) == 0 then
  return {'done'}
end

local is_last = lease ~= '' and (try(KEYS[4], 'zset', 'ZCOUNT', 1, 1) or 1) <= 1
if is_last and move_state(KEYS[3], 'running', state, ARGV[6], ARGV[7]) == 'conflict' then return {'conflict'} end

local first_field = 14 + ARGV[13]
if record then
  redis.call('HSET', KEYS[2], unpack(ARGV, first_field))
  redis.call('PEXPIRE', KEYS[2], ARGV[9])
end
emit_metrics(KEYS[5], KEYS[6], 14, first_field - 1, ARGV[10], ARGV[11], ARGV[9])
emit_result(KEYS[6], ARGV[8], ARGV[11])
try(KEYS[4], 'zset', 'ZREM', ARGV[3])
if held[3] then -- what is included is made anew by each call, and most runs have no limits
-- include limits.lua
  release(held[3], ARGV[12])
end
try(KEYS[1], 'stream', 'XACK', ARGV[1], ARGV[2])
try(KEYS[1], 'stream', 'XDEL', ARGV[2])
return {'finished', unpack(skipped)}
