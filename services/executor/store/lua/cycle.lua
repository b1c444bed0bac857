-- A worker asks whether it is to look for the experiments of the next speedrun cycle; one at a time does.
--
-- KEYS  1 cycle
-- ARGV  1 worker  2 ms until another one may, should this one never give the turns
-- returns 0 when it is this worker's turn to look, else ms until it is worth asking again
-- include types.lua
redis.replicate_commands()
local wrong = misfit(KEYS[1], 'string')
if wrong then return wrong end
if redis.call('GET', KEYS[1]) == ARGV[1] or redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
local left = redis.call('PTTL', KEYS[1])
if left < 0 then -- a key that somebody else has written stays for ever
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  left = tonumber(ARGV[2])
end
return math.max(1, left)
