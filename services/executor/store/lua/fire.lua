-- Queues the runs of a due time, once, and moves the schedule on to its next due time, as was decided. Hands orders
-- out to a worker with room, as enqueue.lua does.
--
-- KEYS  due_times open_runs
-- ARGV  experiment_id due_ms next_ms overlap digest worker room started_at started metrics_cap journal_cap metrics_ms orders[]
--   next_ms  the next due time, or "" when there is none
--   overlap  skip | queue | allow
--   digest   of what was decided by (see deciding.lua), or "" not to compare it
--   orders   one for each run, all of one priority
-- returns {what, now (microseconds), what was handed out (see claims.lua, which has the other arguments)}; what is
--         "fired" | "skipped" (the last run is still open) | "dropped" (nothing was to be queued); or nothing was
--         done: "taken" (another worker was first) | "changed" (what was decided by) | "early"
-- include deciding.lua
-- include claims.lua
local queue = orders[1] and queue_of(orders[1])
local wrong = misfit(due_times, 'zset') or queue and misfit(queue, 'stream')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function what_became(what) return {what, now, handed_out()} end

local waiting = redis.call('ZSCORE', due_times, experiment_id)
if not waiting or tonumber(waiting) ~= tonumber(due_ms) then return what_became('taken') end
if digest ~= '' and select(4, deciding(experiment_id, open_runs)) ~= digest then return what_became('changed') end
if now < tonumber(due_ms) * 1000 then return what_became('early') end

if next_ms == '' then
  redis.call('ZREM', due_times, experiment_id)
else
  redis.call('ZADD', due_times, next_ms, experiment_id)
end
if #orders == 0 then return what_became('dropped') end
if overlap == 'skip' and usable(open_runs, 'zset') and redis.call('ZCARD', open_runs) > 0 then
  return what_became('skipped')
end
local newest
for _, order in ipairs(orders) do newest = queue_run(redis.call, queue, open_runs, order) end
hand_out_from(queue, newest)
return what_became('fired')
