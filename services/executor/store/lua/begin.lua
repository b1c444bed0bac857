-- A worker begins the attempt that it has claimed.
--
-- KEYS  1 queue  2 record  3 experiment  4 open runs  5 metrics list  6 journal  7 retries  8 nudges
--       9.. triples, one a limit: holders, blocked orders, rate
-- ARGV  1 group  2 worker  3 entry  4 timestamp of the run  5 id of the run
--       6 state of the experiment, or "" to leave it  7 expected document  8 replacement  (see state.lua)
--       9 event (JSON)  10 metrics cap  11 journal cap  12 order (JSON), or "" without limits  13 lease
--       14 ms the metrics are kept  15.. for each limit: its key, runs at once or 0, ms between begins or 0, burst,
--            the order once its turn under this limit is reserved (JSON), or "" when it was;
--       then fields of the record
-- returns "begun" | "lost" (the claim is somebody else's by now) | "archived" | "conflict"
--         | "waiting" (a limit has no room; the order comes again) | "cancelled" (while it waited);
-- "lost", "archived" and "conflict" changed nothing
-- include types.lua
-- include state.lua
-- include events.lua
-- include held.lua
redis.replicate_commands()
local mute = silenced('fullsend:metrics')
if mute then return mute end
local held, wrong = held_by(ARGV[2], KEYS[1], ARGV[1], ARGV[3], ARGV[3])
if wrong then return wrong end
if held == 0 then return 'lost' end
local lease = redis.pcall('HGET', KEYS[2], 'lease')
wrong = refused(lease, KEYS[2], 'hash')
if wrong then return wrong end
if lease == ARGV[13] then return 'begun' end -- this very call had got through before
local open = redis.pcall('ZSCORE', KEYS[4], ARGV[4])
wrong = refused(open, KEYS[4], 'zset')
if wrong then return wrong end

local function let_go(answer)
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  redis.call('XDEL', KEYS[1], ARGV[3])
  return answer
end

local first_field, take = 15, nil
if #KEYS > 8 then -- what is included is made anew by each call, and most runs have no limits
-- include limits.lua
-- include room.lua
  wrong = misfit(KEYS[7], 'zset', KEYS[8], 'zset')
  if wrong then return wrong end
  local limits
  limits, wrong = limits_from(9, first_field)
  if wrong then return wrong end
  if not open then
    for _, limit in ipairs(limits) do unblock(limit.blocked) end
  elseif not has_room(limits, ARGV[12], KEYS[7], KEYS[8]) then
    return let_go('waiting')
  end
  first_field = first_field + 5 * #limits
  take = function() take_room(limits, ARGV[5]) end
end
if not open then return let_go('cancelled') end

local moved = move_state(KEYS[3], '', ARGV[6], ARGV[7], ARGV[8])
if moved == 'archived' or moved == 'conflict' then return moved end
if take then take() end
redis.call('HSET', KEYS[2], unpack(ARGV, first_field))
if lease then redis.call('PERSIST', KEYS[2]) end -- an attempt before had begun
redis.call('ZADD', KEYS[4], 1, ARGV[4])
emit_metrics(KEYS[5], KEYS[6], 9, 9, ARGV[10], ARGV[11], ARGV[14])
return 'begun'
