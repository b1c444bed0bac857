-- Queues one run, once, and hands orders out from its queue to a worker with room, which need not be woken then.
--
-- KEYS  queue open_runs admitted request
--   admitted  a bitmap
-- ARGV  order bit bitmap_kept_ms request_kept_ms group worker room
--   order            JSON
--   bit              of the message in the bitmap, or ""
--   request_kept_ms  how long the request id is remembered, or "" when there is none
--   room             how many orders the worker takes
-- returns {timestamp, 1, claims, experiments} when queued (see claims.lua);
--         {timestamp or "", 0, {}, {}} when it was queued before
-- include queued.lua
-- include claims.lua
local known, wrong = false, nil
if bit ~= '' then
  local seen = redis.pcall('GETBIT', admitted, bit)
  wrong = refused(seen, admitted, 'string')
  if wrong then return wrong end
  if seen == 1 then return {'', 0, {}, {}} end
end
if request_kept_ms ~= '' then
  known = redis.pcall('GET', request)
  wrong = refused(known, request, 'string')
  if wrong then return wrong end
end
local timestamp = known or queue_run(redis.pcall, queue, open_runs, order)
wrong = refused(timestamp, queue, 'stream')
if wrong then return wrong end
if bit ~= '' then
  redis.call('SETBIT', admitted, bit, 1)
  redis.call('PEXPIRE', admitted, bitmap_kept_ms)
end
if known then return {known, 0, {}, {}} end
if request_kept_ms ~= '' then redis.call('SET', request, timestamp, 'PX', request_kept_ms) end
if room ~= '0' then
  -- Without the consumer group, the run is queued all the same.
  local could_claim, claims, experiments = pcall(hand_out, {queue}, group, worker, tonumber(room))
  if could_claim then return {timestamp, 1, claims, experiments} end
end
return {timestamp, 1, {}, {}}
