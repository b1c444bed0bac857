-- Finds out whether a worker holds a claim.
-- include types.lua

-- Returns how many of the entries from `first` to `last` the worker holds, 0 or 1; or nil and an error reply.
-- Without the consumer group, which is gone when Redis lost its data, no worker holds any.
local function held_by(worker, queue, group, first, last)
  local found = redis.pcall('XPENDING', queue, group, first, last, 1, worker)
  if not found.err then return #found end
  if string.find(found.err, 'NOGROUP', 1, true) then return 0 end
  return nil, refused(found, queue, 'stream')
end
