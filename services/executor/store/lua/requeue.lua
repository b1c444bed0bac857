-- A claimed run goes back to the queue: its worker is stopping, or has died.
--
-- KEYS  1 queue  2 record  3 open runs
-- ARGV  1 group  2 worker that holds the claim  3 entry  4 timestamp of the run  5 id of the run
--       6 order (JSON)  7.. fields of the record, written if the run had begun and is open still
-- returns 1 when it went back, 0 when the claim is gone
-- include types.lua
-- include limits.lua
-- include held.lua
redis.replicate_commands()
local held, wrong = held_by(ARGV[2], KEYS[1], ARGV[1], ARGV[3], ARGV[3])
if wrong then return wrong end
if held == 0 then return 0 end
redis.call('XADD', KEYS[1], '*', 'order', ARGV[6])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
release(try(KEYS[2], 'hash', 'HGET', 'limits'), ARGV[5])
-- A run that was cancelled while it waited is not open any more, and must not be again.
if usable(KEYS[3], 'zset') and redis.call('ZSCORE', KEYS[3], ARGV[4]) then
  redis.call('ZADD', KEYS[3], 0, ARGV[4])
  if usable(KEYS[2], 'hash') and redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('HSET', KEYS[2], 'lease', '', unpack(ARGV, 7))
  end
end
return 1
