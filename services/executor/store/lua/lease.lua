-- A planner says that it executes a plan, or that it has left; one at a time does.
--
-- KEYS  1 planner
-- ARGV  1 who it is  2 ms until another one may, should it not be heard of again; 0 when it leaves
--       3 who is known to be gone, or ""
-- returns "" when nobody else executes it, else who does
-- include types.lua
redis.replicate_commands()
local wrong = misfit(KEYS[1], 'string')
if wrong then return wrong end
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] and found ~= ARGV[3] then
  -- A key that somebody else has written stays for ever.
  if redis.call('PTTL', KEYS[1]) < 0 and ARGV[2] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return found
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return ''
