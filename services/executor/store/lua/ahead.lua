-- The slots that come next, earliest first, each with all that decides what becomes of it.
--
-- KEYS  1 slots  2 plans
-- ARGV  1 ms: what is due by then  2 how many of them are passed over  3 how many at most
--       4 key of an experiment's open runs, without the experiment
-- returns {slots (see seen.lua), the first slot (ms) after these, or "", now (microseconds)}
-- include documents.lua
-- include seen.lua
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local until_ms = now() / 1000 + ARGV[1]
local first, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local found = redis.call('ZRANGE', KEYS[1], first, first + most, 'WITHSCORES')
local slots, following = {}, ''
for i = 1, #found, 2 do
  local experiment, slot = found[i], found[i + 1]
  if #slots == most or tonumber(slot) > until_ms then
    following = slot
    break
  end
  slots[#slots + 1] = slot_found(experiment, slot, KEYS[2], ARGV[4] .. experiment)
end
-- Asked at the end, so that as little as possible has passed when the answer comes.
return {slots, following, now()}
