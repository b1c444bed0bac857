-- Reads the slots that come next, earliest first, each with everything that decides what becomes of it.
--
-- KEYS  slots plans
-- ARGV  within_ms offset most open_runs
--   within_ms  slots that are due by then are returned
--   offset     how many of them are passed over
--   open_runs  the key of an experiment's open runs, without the experiment
-- returns {slots (see seen.lua), the first slot (ms) after these, or "", now (microseconds)}
-- include seen.lua
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local until_ms = now() / 1000 + within_ms
most = tonumber(most)
local found = redis.call('ZRANGE', slots, offset, offset + most, 'WITHSCORES')
local next_slots, following = {}, ''
for i = 1, #found, 2 do
  local experiment, slot = found[i], found[i + 1]
  if #next_slots == most or tonumber(slot) > until_ms then
    following = slot
    break
  end
  next_slots[#next_slots + 1] = slot_found(experiment, slot, plans, open_runs .. experiment)
end
-- The time is read last, so that it is as fresh as possible when the answer arrives.
return {next_slots, following, now()}
