-- Notes the schedules as they are written now. A slot that waits stays unless its schedule changed.
--
-- KEYS  slots plans
-- ARGV  experiments[] texts[] next_slots[]
--   texts       the schedule of each experiment
--   next_slots  the next slot of each (ms), or "" when there is none
-- returns the experiments whose schedule is new or changed
-- include types.lua
local wrong = misfit(slots, 'zset', plans, 'hash')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local changed = {}
for i, experiment in ipairs(experiments) do
  local text, next = texts[i], next_slots[i]
  if redis.call('HGET', plans, experiment) ~= text then
    redis.call('HSET', plans, experiment, text)
    if next == '' then
      redis.call('ZREM', slots, experiment)
    else
      redis.call('ZADD', slots, next, experiment)
    end
    changed[#changed + 1] = experiment
  elseif next ~= '' and tonumber(next) > now then
    -- A slot that has passed is not put back: it may have fired since the schedule was read, as its last one.
    redis.call('ZADD', slots, 'NX', next, experiment)
  end
end
return changed
