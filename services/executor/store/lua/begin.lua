-- Begins the attempt that a worker has claimed.
--
-- KEYS  queue record experiment open_runs metrics journal retries nudges limit_keys[]
--   limit_keys  see room.lua
-- ARGV  group worker entry timestamp run state expected replacement event metrics_cap journal_cap order lease
-- ARGV  kept_ms limit_values[] fields[]
--   timestamp, run         of the run
--   state, expected, replacement  of the experiment, see state.lua
--   event                  JSON
--   order                  JSON, or "" without limits
--   kept_ms                how long the metrics are kept
--   limit_values           see room.lua
--   fields                 of the record
-- returns "begun" | "lost" (the claim is somebody else's by now) | "archived" | "conflict"
--         | "waiting" (a limit has no room; the order comes again) | "cancelled" (while it waited);
-- "lost", "archived" and "conflict" changed nothing
-- include types.lua
-- include state.lua
-- include events.lua
-- include held.lua
-- include room.lua
local mute = silenced('fullsend:metrics')
if mute then return mute end
local held, wrong = held_by(worker, queue, group, entry, entry)
if wrong then return wrong end
if held == 0 then return 'lost' end
local current_lease = redis.pcall('HGET', record, 'lease')
wrong = refused(current_lease, record, 'hash')
if wrong then return wrong end
if current_lease == lease then return 'begun' end -- this very call got through before
local open = redis.pcall('ZSCORE', open_runs, timestamp)
wrong = refused(open, open_runs, 'zset')
if wrong then return wrong end

local function let_go(answer)
  redis.call('XACK', queue, group, entry)
  redis.call('XDEL', queue, entry)
  return answer
end

local limits, now = {}, 0
if #limit_keys > 0 then
  wrong = misfit(retries, 'zset', nudges, 'zset')
  if wrong then return wrong end
  limits, wrong = limits_from(limit_keys, limit_values)
  if wrong then return wrong end
  now = now_ms()
  if not open then
    for _, limit in ipairs(limits) do unblock(limit.blocked) end
  elseif not has_room(limits, order, retries, nudges, now) then
    return let_go('waiting')
  end
end
if not open then return let_go('cancelled') end

local moved = move_state(experiment, '', state, expected, replacement)
if moved == 'archived' or moved == 'conflict' then return moved end
take_room(limits, run, now)
redis.call('HSET', record, unpack(fields))
if current_lease then redis.call('PERSIST', record) end -- there was an attempt before
redis.call('ZADD', open_runs, 1, timestamp)
emit_metrics(metrics, journal, {event}, metrics_cap, journal_cap, kept_ms)
return 'begun'
