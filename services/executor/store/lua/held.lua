-- Included by others.  How many of the entries from `first` to `last` a worker holds: 0 or 1.
-- Without the group, which is gone when Redis lost its data, nobody holds any.
local function held_by(worker, queue, group, first, last)
  local found = redis.pcall('XPENDING', queue, group, first, last, 1, worker)
  if found.err and string.find(found.err, 'NOGROUP', 1, true) then return 0 end
  if found.err then error(found.err) end
  return #found
end
