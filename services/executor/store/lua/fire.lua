-- A cron slot becomes a queued run, once, and the schedule moves on to its next slot; what was decided ahead counts
-- only if all it was decided by is still so.  Hands an order out to who has room for it, as enqueue.lua does.
--
-- KEYS  1 slots  2 queue  3 open runs of the experiment  4 plans
-- ARGV  1 experiment  2 slot (ms)  3 next slot (ms), or "" when there is none
--       4 overlap: skip | queue | allow | "" to queue nothing
--       5 the mark of what was seen (see seen.lua), or "" not to look again
--       6 until when this holds (ms), or ""  7 "1" to queue nothing unless runs of the experiment are open
--       8 group  9 worker  10 how many orders it has room for  11.. orders (JSON), one a run
-- returns {what, now (microseconds), claims, experiments (see claims.lua), the slot (see seen.lua) if it has "changed"};
--         what is "fired" | "skipped" (the last run is still open) | "passed" (nothing was to be queued)
--         | "taken" (another worker was first); or nothing was done: "early" | "changed"
-- include types.lua
-- include documents.lua
-- include seen.lua
-- include claims.lua
-- include queued.lua
redis.replicate_commands()
local FIRST_ORDER = 11
local wrong = misfit(KEYS[1], 'zset', KEYS[2], 'stream')
if wrong then return wrong end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function answer(what, ...) return {what, now, {}, {}, ...} end

local slot = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not slot or tonumber(slot) ~= tonumber(ARGV[2]) then return answer('taken') end
if ARGV[5] ~= '' then
  local _, mark = decisive(ARGV[1])
  local is_late = ARGV[6] ~= '' and math.floor(now / 1000) > tonumber(ARGV[6])
  if is_late or mark ~= ARGV[5] then return answer('changed', slot_found(ARGV[1], slot, KEYS[4], KEYS[3])) end
end
if now < tonumber(slot) * 1000 then return answer('early') end

if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
if #ARGV < FIRST_ORDER then return answer('passed') end
if ARGV[7] == '1' and redis.call('EXISTS', KEYS[3]) == 0 then return answer('passed') end
if ARGV[4] == 'skip' and usable(KEYS[3], 'zset') and redis.call('ZCARD', KEYS[3]) > 0 then return answer('skipped') end
for i = FIRST_ORDER, #ARGV do
  queue_run(redis.call, KEYS[2], KEYS[3], ARGV[i])
end
-- Where there is no group yet, the runs are queued all the same.
local could_claim, claims, experiments = pcall(hand_out, {KEYS[2]}, ARGV[8], ARGV[9], tonumber(ARGV[10]))
if not could_claim then claims, experiments = {}, {} end
return {'fired', now, claims, experiments}
