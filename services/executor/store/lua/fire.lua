-- A cron slot becomes a queued run, once, and the schedule moves on to its next slot.
--
-- KEYS  1 slots  2 queue  3 open runs of the experiment
-- ARGV  1 experiment  2 slot (ms)  3 next slot (ms), or "" when there is none
--       4 overlap: skip | queue | allow | "" to queue nothing  5.. orders (JSON), one a run
-- returns "fired" | "skipped" (the last run is still open) | "passed" (nothing was to be queued)
--         | "taken" (another worker was first)
-- include types.lua
-- include queued.lua
redis.replicate_commands()
local wrong = misfit(KEYS[1], 'zset', KEYS[2], 'stream')
if wrong then return wrong end
local slot = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not slot or tonumber(slot) ~= tonumber(ARGV[2]) then return 'taken' end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
if #ARGV < 5 then return 'passed' end
if ARGV[4] == 'skip' and usable(KEYS[3], 'zset') and redis.call('ZCARD', KEYS[3]) > 0 then return 'skipped' end
for i = 5, #ARGV do
  queue_run(redis.call, KEYS[2], KEYS[3], ARGV[i])
end
return 'fired'
