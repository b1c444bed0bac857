-- Queues the runs of a due time, once, and moves the schedule on to its next due time, as was decided. Hands orders
-- out to a worker with room, as enqueue.lua does.
--
-- KEYS  due_times queue open_runs
-- ARGV  experiment due_ms next_ms overlap digest group worker room orders[]
--   next_ms  the next due time, or "" when there is none
--   overlap  skip | queue | allow
--   digest   of what was decided by (see deciding.lua), or "" not to compare it
--   room     how many orders the worker takes
--   orders   JSON, one for each run
-- returns {what, now (microseconds), claims, experiments (see claims.lua)}; what is "fired" | "skipped" (the last
--         run is still open) | "dropped" (nothing was to be queued); or nothing was done: "taken" (another
--         worker was first) | "changed" (what was decided by) | "early"
-- include types.lua
-- include deciding.lua
-- include claims.lua
-- include queued.lua
local wrong = misfit(due_times, 'zset', queue, 'stream')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function answer(what) return {what, now, {}, {}} end

local waiting = redis.call('ZSCORE', due_times, experiment)
if not waiting or tonumber(waiting) ~= tonumber(due_ms) then return answer('taken') end
if digest ~= '' and select(4, deciding(experiment, open_runs)) ~= digest then return answer('changed') end
if now < tonumber(due_ms) * 1000 then return answer('early') end

if next_ms == '' then
  redis.call('ZREM', due_times, experiment)
else
  redis.call('ZADD', due_times, next_ms, experiment)
end
if #orders == 0 then return answer('dropped') end
if overlap == 'skip' and usable(open_runs, 'zset') and redis.call('ZCARD', open_runs) > 0 then
  return answer('skipped')
end
for _, order in ipairs(orders) do queue_run(redis.call, queue, open_runs, order) end
-- Without the consumer group, the runs are queued all the same.
local could_claim, claims, experiments = pcall(hand_out, {queue}, group, worker, tonumber(room))
if not could_claim then claims, experiments = {}, {} end
return {'fired', now, claims, experiments}
