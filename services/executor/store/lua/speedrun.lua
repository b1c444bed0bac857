-- Makes one speedrun cycle: the experiments that waited longest get a turn.
--
-- KEYS  cycle turns run_keys[]
--   run_keys  two for each experiment: its open runs, the queue
-- ARGV  interval_ms most experiments[] orders[]
--   interval_ms  how long a cycle takes; "" gives turns that are left of the cycle under way, to those who had none ever
--   most         how many turns it gives
--   orders       one for each experiment
-- returns {ms until the next cycle, experiments that got a turn ...}
-- include orders.lua
local GIVEN = '1' -- any other value is the worker that prepares the cycle
local TURN_KEPT_MS = 30 * 86400 * 1000 -- by then, the experiment is gone or set aside
local wrong = misfit(cycle, 'string', turns, 'zset')
if wrong then return wrong end
for i = 2, #run_keys, 2 do
  if not usable(run_keys[i], 'stream') then return misfit(run_keys[i], 'stream') end
end
local left = redis.call('GET', cycle) == GIVEN and redis.call('PTTL', cycle)
local is_new = interval_ms ~= ''
if is_new then
  -- This worker may have looked for the experiments for so long that another one has started to.
  if left and left >= 0 then return {left} end
  redis.call('SET', cycle, GIVEN, 'PX', interval_ms)
  left = tonumber(interval_ms)
elseif not left or left < 0 then
  return {0}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', turns, '-inf', now - TURN_KEPT_MS)
local waiting = {}
for i, experiment in ipairs(experiments) do
  local open_runs, queue = run_keys[2 * i - 1], run_keys[2 * i]
  if not usable(open_runs, 'zset') or redis.call('ZCARD', open_runs) == 0 then
    local last = tonumber(redis.call('ZSCORE', turns, experiment) or 0)
    local run = {experiment = experiment, order = orders[i], open_runs = open_runs, queue = queue, last = last}
    if is_new or last == 0 then waiting[#waiting + 1] = run end
  end
end
table.sort(waiting, function(a, b)
  if a.last == b.last then return a.experiment < b.experiment end
  return a.last < b.last
end)
local answer = {left}
for turn = 1, math.min(tonumber(most), #waiting) do
  local next = waiting[turn]
  queue_run(redis.call, next.queue, next.open_runs, next.order)
  ring()
  -- The fraction keeps the order of turns within a cycle.
  redis.call('ZADD', turns, now + turn / 1000, next.experiment)
  answer[turn + 1] = next.experiment
end
return answer
