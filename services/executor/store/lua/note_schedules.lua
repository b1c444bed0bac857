-- Notes the schedules as they are written now. A due time stays unless its schedule changed.
--
-- KEYS  due_times noted_schedules
-- ARGV  experiments[] texts[] next_ms[]
--   texts    the schedule of each experiment
--   next_ms  the next due time of each, or "" when there is none
-- returns the experiments whose schedule is new or changed
-- include types.lua
local wrong = misfit(due_times, 'zset', noted_schedules, 'hash')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local changed = {}
for i, experiment in ipairs(experiments) do
  local text, next = texts[i], next_ms[i]
  if redis.call('HGET', noted_schedules, experiment) ~= text then
    redis.call('HSET', noted_schedules, experiment, text)
    if next == '' then
      redis.call('ZREM', due_times, experiment)
    else
      redis.call('ZADD', due_times, next, experiment)
    end
    changed[#changed + 1] = experiment
  elseif next ~= '' and tonumber(next) > now then
    -- One that has passed is not put back: it may have fired since the schedule was read, as its last one.
    redis.call('ZADD', due_times, 'NX', next, experiment)
  end
end
return changed
