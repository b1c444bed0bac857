-- Included by others, after types.lua.  Gives a run its identity: the id of its entry, unique among the
-- experiment's open runs.  Where these can't be noted, it is queued all the same: its begin says what is wrong.
local function queue_run(queue, open, order)
  while true do
    local timestamp = redis.call('XADD', queue, '*', 'order', order)
    if not usable(open, 'zset') then return timestamp end
    if redis.call('ZADD', open, 'NX', 0, timestamp) == 1 then return timestamp end
    redis.call('XDEL', queue, timestamp) -- taken in the same millisecond by a run of another priority
  end
end
