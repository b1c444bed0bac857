-- Gives a claimed run back to the queue: its worker stops, or is dead.
--
-- KEYS  queue record open_runs
-- ARGV  worker entry timestamp run order fields[]
--   fields  of the record, written if the run had begun and is still open
-- returns 1 when it went back, 0 when the claim is gone
-- include orders.lua
local held = redis.pcall('XPENDING', queue, 'executors', entry, entry, 1, worker)
if held.err and string.find(held.err, 'NOGROUP', 1, true) then return 0 end -- Redis has lost its data
local wrong = refused(held, queue, 'stream')
if wrong then return wrong end
if #held == 0 then return 0 end
redis.call('XADD', queue, '*', 'order', order)
redis.call('XACK', queue, 'executors', entry)
redis.call('XDEL', queue, entry)
ring()
release(try(record, 'hash', 'HGET', 'limits'), run)
-- A run that was cancelled while it waited is not open any more, and must not be again.
if usable(open_runs, 'zset') and redis.call('ZSCORE', open_runs, timestamp) then
  redis.call('ZADD', open_runs, 0, timestamp)
  if usable(record, 'hash') and redis.call('EXISTS', record) == 1 then
    redis.call('HSET', record, 'lease', '', unpack(fields))
  end
end
return 1
