-- Decides which worker looks for the experiments of the next speedrun cycle; one at a time does.
--
-- KEYS  cycle
-- ARGV  worker kept_ms
--   kept_ms  when another worker may look, in case this one never gives the turns
-- returns 0 when it is this worker's turn to look, else ms until it is worth asking again
-- include types.lua
local wrong = misfit(cycle, 'string')
if wrong then return wrong end
if redis.call('GET', cycle) == worker or redis.call('SET', cycle, worker, 'NX', 'PX', kept_ms) then return 0 end
local left = redis.call('PTTL', cycle)
if left < 0 then -- a key that somebody else wrote would never expire
  redis.call('PEXPIRE', cycle, kept_ms)
  left = tonumber(kept_ms)
end
return math.max(1, left)
