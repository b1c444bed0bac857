-- A worker that has subscribed takes its place in the order of triggers, or gives it up.
--
-- The marker gives everybody who hears it the same point to count messages from.
-- Who hears it as the first one may admit what it heard before only when nobody could
-- have identified that otherwise: nobody who had joined on a connection that still is,
-- this one included.  The marker says so (":1" at its end, else ":0"), so that all who
-- hear it decide alike, and one of them may die over it.  Each connection has a channel
-- of its own, its ear, to tell whether it still is.
--
-- A marker is published once: who heard it again would count anew from it, and take
-- the next messages for those that were admitted.
--
-- KEYS  1 listeners  2 ears  3 bitmap of the marker: bit 0 when it was published, bit 1 is the answer
-- ARGV  1 worker  2 marker  3 channel of the markers  4 ms a listener is believed to live, 0 when it leaves
--       5 ms the bitmap is kept  6 ear of the worker
-- returns 1 when what was heard before this marker is still to be admitted, else 0
-- include types.lua
-- include events.lua
redis.replicate_commands()
local mute = silenced(ARGV[3]) or silenced(ARGV[6])
if mute then return mute end
local wrong = misfit(KEYS[1], 'zset', KEYS[2], 'set', KEYS[3], 'string')
if wrong then return wrong end
if redis.call('SETBIT', KEYS[3], 0, 1) == 1 then return redis.call('GETBIT', KEYS[3], 1) end
redis.call('PEXPIRE', KEYS[3], ARGV[5])

local others = redis.call('SISMEMBER', KEYS[2], ARGV[6])
for _, ear in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if ear ~= ARGV[6] then
    if redis.call('PUBLISH', ear, '') == 0 then
      redis.call('SREM', KEYS[2], ear)
    else
      others = others + 1
    end
  end
end
if tonumber(ARGV[4]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('SREM', KEYS[2], ARGV[6])
else
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4], ARGV[1])
  redis.call('SADD', KEYS[2], ARGV[6])
end
local answers = others == 0 and 1 or 0
redis.call('PUBLISH', ARGV[3], ARGV[2] .. ':' .. answers)
redis.call('SETBIT', KEYS[3], 1, answers)
return answers
