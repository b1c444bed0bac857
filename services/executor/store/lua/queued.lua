-- Queues a run.
-- include types.lua

-- Gives a run its identity: the id of its entry, unique among the open runs of the experiment. If the open
-- runs can't be written, it is queued all the same, and its begin reports the error.
-- Returns the id; `call`, redis.call or redis.pcall, sends the first command, the one on the queue.
local function queue_run(call, queue, open_runs, order)
  while true do
    local timestamp = call('XADD', queue, '*', 'order', order)
    if timestamp.err or try(open_runs, 'zset', 'ZADD', 'NX', 0, timestamp) ~= 0 then return timestamp end
    redis.call('XDEL', queue, timestamp) -- a run of another priority has this id, from the same millisecond
  end
end
