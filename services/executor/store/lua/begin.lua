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
-- include limits.lua
-- include held.lua
redis.replicate_commands()
local FIRST_KEY, FIRST_ARG = 9, 15
local mute = silenced('fullsend:metrics')
if mute then return mute end
local wrong = misfit(KEYS[1], 'stream', KEYS[2], 'hash', KEYS[4], 'zset', KEYS[7], 'zset', KEYS[8], 'zset')
if wrong then return wrong end
local limits = {}
for i = 0, (#KEYS - FIRST_KEY + 1) / 3 - 1 do
  local key, arg = FIRST_KEY + 3 * i, FIRST_ARG + 5 * i
  limits[i + 1] = {
    holders = KEYS[key], blocked = KEYS[key + 1], rate = KEYS[key + 2], name = ARGV[arg],
    most = tonumber(ARGV[arg + 1]), interval = tonumber(ARGV[arg + 2]), burst = tonumber(ARGV[arg + 3]),
    reserved = ARGV[arg + 4],
  }
  wrong = misfit(KEYS[key], 'set', KEYS[key + 1], 'list', KEYS[key + 2], 'string')
  if wrong then return wrong end
end

local function let_go(answer)
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  redis.call('XDEL', KEYS[1], ARGV[3])
  return answer
end

if held_by(ARGV[2], KEYS[1], ARGV[1], ARGV[3], ARGV[3]) == 0 then return 'lost' end
if redis.call('HGET', KEYS[2], 'lease') == ARGV[13] then return 'begun' end -- this very call had got through before
if not redis.call('ZSCORE', KEYS[4], ARGV[4]) then
  for _, limit in ipairs(limits) do unblock(limit.blocked) end
  return let_go('cancelled')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, limit in ipairs(limits) do
  if limit.most > 0 and redis.call('SCARD', limit.holders) >= limit.most then
    redis.call('RPUSH', limit.blocked, ARGV[12])
    redis.call('ZADD', KEYS[8], 'NX', now + NUDGE_MS, limit.name)
    return let_go('waiting')
  end
end

-- The generic cell rate algorithm: `next` is when the steady rate would have its next begin.
local function take_turn(limit, next)
  redis.call('SET', limit.rate, next + limit.interval, 'PX', math.ceil(next + limit.interval - now))
end
for _, limit in ipairs(limits) do
  if limit.interval > 0 and limit.reserved ~= '' then
    limit.next = math.max(tonumber(redis.call('GET', limit.rate) or 0), now)
    local due = limit.next - (limit.burst - 1) * limit.interval
    if due > now then
      take_turn(limit, limit.next)
      redis.call('ZADD', KEYS[7], due, limit.reserved)
      return let_go('waiting')
    end
  end
end

local moved = move_state(KEYS[3], '', ARGV[6], ARGV[7], ARGV[8])
if moved == 'archived' or moved == 'conflict' then return moved end
for _, limit in ipairs(limits) do
  if limit.most > 0 then redis.call('SADD', limit.holders, ARGV[5]) end
  if limit.next then take_turn(limit, limit.next) end
end
redis.call('HSET', KEYS[2], unpack(ARGV, FIRST_ARG + 5 * #limits))
redis.call('PERSIST', KEYS[2])
redis.call('ZADD', KEYS[4], 1, ARGV[4])
emit_metric(KEYS[5], KEYS[6], ARGV[9], ARGV[10], ARGV[11], ARGV[14])
return 'begun'
