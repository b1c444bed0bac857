-- Gives a claimed run back to the queue: its worker stops, or is dead.
--
-- KEYS  queue record open_runs
-- ARGV  group worker entry timestamp run order fields[]
--   worker          holds the claim
--   timestamp, run  of the run
--   order           JSON
--   fields          of the record, written if the run had begun and is still open
-- returns 1 when it went back, 0 when the claim is gone
-- include limits.lua
-- include held.lua
local held, wrong = held_by(worker, queue, group, entry, entry)
if wrong then return wrong end
if held == 0 then return 0 end
redis.call('XADD', queue, '*', 'order', order)
redis.call('XACK', queue, group, entry)
redis.call('XDEL', queue, entry)
release(try(record, 'hash', 'HGET', 'limits'), run)
-- A run that was cancelled while it waited is not open any more, and must stay so.
if usable(open_runs, 'zset') and redis.call('ZSCORE', open_runs, timestamp) then
  redis.call('ZADD', open_runs, 0, timestamp)
  if usable(record, 'hash') and redis.call('EXISTS', record) == 1 then
    redis.call('HSET', record, 'lease', '', unpack(fields))
  end
end
return 1
