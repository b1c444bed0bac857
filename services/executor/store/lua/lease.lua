-- Gives a plan to one planner alone, or gives it up.
--
-- KEYS  holder
-- ARGV  planner ttl_ms gone
--   ttl_ms  when another planner may have the plan, if this one does not ask again; 0 gives it up
--   gone    another planner that is known to be dead, or ""
-- returns "" when no other planner has the plan, else the planner that has it
-- include types.lua
local wrong = misfit(holder, 'string')
if wrong then return wrong end
local found = redis.call('GET', holder)
if found and found ~= planner and found ~= gone then
  -- A key that somebody else wrote would never expire.
  if redis.call('PTTL', holder) < 0 and ttl_ms ~= '0' then redis.call('PEXPIRE', holder, ttl_ms) end
  return found
end
if ttl_ms == '0' then
  redis.call('DEL', holder)
else
  redis.call('SET', holder, planner, 'PX', ttl_ms)
end
return ''
