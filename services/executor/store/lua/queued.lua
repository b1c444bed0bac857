-- Included by others, after types.lua.  Gives a run its identity: the id of its entry, unique among the
-- experiment's open runs.  Where these can't be noted, it is queued all the same: its begin says what is wrong.
-- The first command, the one on the queue, goes out by `call`; with `redis.pcall`, the error is returned.
local function queue_run(call, queue, open, order)
  while true do
    local timestamp = call('XADD', queue, '*', 'order', order)
    if timestamp.err or try(open, 'zset', 'ZADD', 'NX', 0, timestamp) ~= 0 then return timestamp end
    redis.call('XDEL', queue, timestamp) -- taken in the same millisecond by a run of another priority
  end
end
