-- A worker begins the attempt that it has claimed.
--
-- KEYS  1 queue  2 record  3 experiment  4 open runs  5 metrics list  6 journal
-- ARGV  1 group  2 worker  3 entry  4 timestamp of the run
--       5 state of the experiment, or "" to leave it  6 expected document  7 replacement  (see state.lua)
--       8 event (JSON)  9 metrics cap  10 journal cap
--       11 "1" when no other run of the experiment may be under way  12.. fields of the record
-- returns "begun" | "lost" (the claim is somebody else's by now) | "busy" | "archived" | "conflict"
--         | "cancelled" (it was, while it waited; the claim is done with);
-- anything but "begun" and "cancelled" changed nothing
-- include state.lua
-- include events.lua
redis.replicate_commands()
local claim = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #claim == 0 then return 'lost' end
if not redis.call('ZSCORE', KEYS[4], ARGV[4]) then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  redis.call('XDEL', KEYS[1], ARGV[3])
  return 'cancelled'
end
if ARGV[11] == '1' and redis.call('ZCOUNT', KEYS[4], 1, 1) > 0 then return 'busy' end
local moved = move_state(KEYS[3], '', ARGV[5], ARGV[6], ARGV[7])
if moved == 'archived' or moved == 'conflict' then return moved end
redis.call('HSET', KEYS[2], unpack(ARGV, 12))
redis.call('PERSIST', KEYS[2])
redis.call('ZADD', KEYS[4], 1, ARGV[4])
emit_metric(KEYS[5], KEYS[6], ARGV[8], ARGV[9], ARGV[10])
return 'begun'
