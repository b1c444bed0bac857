-- One speedrun cycle: those who waited longest get their turn.
--
-- KEYS  1 cycle  2 turns  3.. pairs, one an experiment: open runs, queue
-- ARGV  1 ms a cycle takes  2 how many turns it gives  3.. pairs: experiment, order (JSON)
-- returns {ms until the next cycle, experiments that got a turn ...}
-- include types.lua
-- include queued.lua
redis.replicate_commands()
local GIVEN = '1' -- any other value is the worker that looks for experiments, see cycle.lua
local TURN_KEPT_MS = 30 * 86400 * 1000 -- after so long, the experiment is gone or set aside
local wrong = misfit(KEYS[1], 'string', KEYS[2], 'zset')
if wrong then return wrong end
for i = 4, #KEYS, 2 do
  if not usable(KEYS[i], 'stream') then return misfit(KEYS[i], 'stream') end
end
-- Whoever looked for the experiments may have taken so long that another worker looks for them now.
local left = redis.call('GET', KEYS[1]) == GIVEN and redis.call('PTTL', KEYS[1])
if left and left >= 0 then return {left} end
redis.call('SET', KEYS[1], GIVEN, 'PX', ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - TURN_KEPT_MS)
local waiting = {}
for i = 3, #KEYS, 2 do -- KEYS and ARGV run side by side
  if not usable(KEYS[i], 'zset') or redis.call('ZCARD', KEYS[i]) == 0 then
    local last = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[i]) or 0)
    local run = {experiment = ARGV[i], order = ARGV[i + 1], open = KEYS[i], queue = KEYS[i + 1], last = last}
    waiting[#waiting + 1] = run
  end
end
table.sort(waiting, function(a, b)
  if a.last == b.last then return a.experiment < b.experiment end
  return a.last < b.last
end)
local answer = {tonumber(ARGV[1])}
for turn = 1, math.min(tonumber(ARGV[2]), #waiting) do
  local next = waiting[turn]
  queue_run(redis.call, next.queue, next.open, next.order)
  -- Within a cycle as well, the next to come is who waited longest.
  redis.call('ZADD', KEYS[2], now + turn / 1000, next.experiment)
  answer[turn + 1] = next.experiment
end
return answer
