-- Queues the run of a cron slot, once, and moves the schedule on to its next slot.
--
-- A decision that was made ahead counts only while everything that it was made by is unchanged. Hands orders out
-- to a worker with room, as enqueue.lua does.
--
-- KEYS  slots queue open_runs plans
-- ARGV  experiment due_ms next_ms overlap mark until_ms only_if_open group worker room orders[]
--   due_ms        the slot
--   next_ms       the next slot, or "" when there is none
--   overlap       skip | queue | allow | "" to queue nothing
--   mark          of what was seen (see seen.lua), or "" not to look again
--   until_ms      until when the decision holds, or ""
--   only_if_open  "1" to queue nothing unless runs of the experiment are open
--   room          how many orders the worker takes
--   orders        JSON, one for each run
-- returns {what, now (microseconds), claims, experiments (see claims.lua), the slot (see seen.lua) if "changed"};
--         what is "fired" | "skipped" (the last run is still open) | "passed" (nothing was to be queued)
--         | "taken" (another worker was first); or nothing was done: "early" | "changed"
-- include types.lua
-- include seen.lua
-- include claims.lua
-- include queued.lua
local wrong = misfit(slots, 'zset', queue, 'stream')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function answer(what, ...) return {what, now, {}, {}, ...} end

local slot = redis.call('ZSCORE', slots, experiment)
if not slot or tonumber(slot) ~= tonumber(due_ms) then return answer('taken') end
if mark ~= '' then
  local _, current = decisive(experiment)
  local is_late = until_ms ~= '' and math.floor(now / 1000) > tonumber(until_ms)
  if is_late or current ~= mark then return answer('changed', slot_found(experiment, slot, plans, open_runs)) end
end
if now < tonumber(slot) * 1000 then return answer('early') end

if next_ms == '' then
  redis.call('ZREM', slots, experiment)
else
  redis.call('ZADD', slots, next_ms, experiment)
end
if #orders == 0 then return answer('passed') end
if only_if_open == '1' and redis.call('EXISTS', open_runs) == 0 then return answer('passed') end
if overlap == 'skip' and usable(open_runs, 'zset') and redis.call('ZCARD', open_runs) > 0 then
  return answer('skipped')
end
for _, order in ipairs(orders) do queue_run(redis.call, queue, open_runs, order) end
-- Without the consumer group, the runs are queued all the same.
local could_claim, claims, experiments = pcall(hand_out, {queue}, group, worker, tonumber(room))
if not could_claim then claims, experiments = {}, {} end
return {'fired', now, claims, experiments}
