-- Gives a worker that has subscribed its place in the order of triggers, or takes the place back.
--
-- The marker gives every worker that hears it the same point from which to count messages. The worker for which
-- it is the first marker may admit what it heard before only if no worker could have identified those messages
-- otherwise: no worker that joined on a connection which still exists, this one included. The marker itself says
-- so (":1" at its end, else ":0"): all who hear it decide alike, and one of them may die while it decides. Each
-- connection has a channel of its own, its ear, which tells whether the connection still exists.
--
-- A marker is published once. A worker that heard it twice would start to count again, and would take the next
-- messages for those that were admitted.
--
-- KEYS  listeners ears bitmap
--   bitmap  of the marker: bit 0 is set when it is published, bit 1 is the answer
-- ARGV  worker marker channel ttl_ms bitmap_kept_ms ear
--   channel  of the markers
--   ttl_ms   when the worker counts as gone; 0 when it leaves
--   ear      of the worker
-- returns 1 when what was heard before this marker is still to be admitted, else 0
-- include events.lua
local mute = silenced(channel) or silenced(ear)
if mute then return mute end
local wrong = misfit(listeners, 'zset', ears, 'set', bitmap, 'string')
if wrong then return wrong end
if redis.call('SETBIT', bitmap, 0, 1) == 1 then return redis.call('GETBIT', bitmap, 1) end
redis.call('PEXPIRE', bitmap, bitmap_kept_ms)

local others = redis.call('SISMEMBER', ears, ear)
for _, other in ipairs(redis.call('SMEMBERS', ears)) do
  if other ~= ear then
    if redis.call('PUBLISH', other, '') == 0 then
      redis.call('SREM', ears, other)
    else
      others = others + 1
    end
  end
end
if tonumber(ttl_ms) == 0 then
  redis.call('ZREM', listeners, worker)
  redis.call('SREM', ears, ear)
else
  local time = redis.call('TIME')
  redis.call('ZADD', listeners, time[1] * 1000 + math.floor(time[2] / 1000) + ttl_ms, worker)
  redis.call('SADD', ears, ear)
end
local answer = others == 0 and 1 or 0
redis.call('PUBLISH', channel, marker .. ':' .. answer)
redis.call('SETBIT', bitmap, 1, answer)
return answer
