-- A claimed run goes back: its worker is stopping, has died, or may not start it yet.
--
-- KEYS  1 queue  2 record  3 open runs  4 retries
-- ARGV  1 group  2 worker that holds the claim  3 entry  4 timestamp of the run
--       5 order (JSON)  6 ms until it may be claimed again
--       7.. fields of the record, written if the run had begun
-- returns 1 when it went back, 0 when the claim is gone
redis.replicate_commands()
local claim = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #claim == 0 then return 0 end
if tonumber(ARGV[6]) > 0 then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[6], ARGV[5])
else
  redis.call('XADD', KEYS[1], '*', 'order', ARGV[5])
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[3], 0, ARGV[4])
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HSET', KEYS[2], 'lease', '', unpack(ARGV, 7)) end
return 1
