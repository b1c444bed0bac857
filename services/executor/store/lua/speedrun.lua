-- One speedrun cycle: those who waited longest get their turn.
--
-- KEYS  1 cycle  2 turns  3 queue  4.. open runs of each experiment
-- ARGV  1 ms a cycle takes  2 how many turns it gives  3.. pairs: experiment, order (JSON)
-- returns {ms until the next cycle, experiments that got a turn ...}
redis.replicate_commands()
local left = redis.call('PTTL', KEYS[1])
if left > 0 then return {left} end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
local time = redis.call('TIME')
local waiting = {}
for i = 4, #KEYS do
  if redis.call('ZCARD', KEYS[i]) == 0 then
    local experiment = ARGV[2 * i - 5]
    local last = redis.call('ZSCORE', KEYS[2], experiment) or 0
    waiting[#waiting + 1] = {experiment = experiment, order = ARGV[2 * i - 4], open = KEYS[i], last = tonumber(last)}
  end
end
table.sort(waiting, function(a, b)
  if a.last == b.last then return a.experiment < b.experiment end
  return a.last < b.last
end)
local answer = {tonumber(ARGV[1])}
for turn = 1, math.min(tonumber(ARGV[2]), #waiting) do
  local next = waiting[turn]
  local timestamp = redis.call('XADD', KEYS[3], '*', 'order', next.order)
  redis.call('ZADD', next.open, 0, timestamp)
  redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000), next.experiment)
  answer[turn + 1] = next.experiment
end
return answer
