-- Note the schedules as they are written now; a slot that is waiting stays unless its schedule changed.
--
-- KEYS  1 slots  2 plans
-- ARGV  triples: experiment, schedule as text, next slot (ms) or "" when there is none
-- returns the experiments whose schedule is new or changed
-- include types.lua
local wrong = misfit(KEYS[1], 'zset', KEYS[2], 'hash')
if wrong then return wrong end
redis.replicate_commands()
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local changed = {}
for i = 1, #ARGV, 3 do
  local experiment, text, next = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('HGET', KEYS[2], experiment) ~= text then
    redis.call('HSET', KEYS[2], experiment, text)
    if next == '' then
      redis.call('ZREM', KEYS[1], experiment)
    else
      redis.call('ZADD', KEYS[1], next, experiment)
    end
    changed[#changed + 1] = experiment
  elseif next ~= '' and tonumber(next) > now then
    -- A slot that has passed is not put back: it may have fired since the schedule was read, as its last one.
    redis.call('ZADD', KEYS[1], 'NX', next, experiment)
  end
end
return changed
