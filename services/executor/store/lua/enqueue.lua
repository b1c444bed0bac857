-- Queues one run, once, and hands orders out from its queue to a worker that has room.
--
-- KEYS  open_runs admitted request
--   admitted  a bitmap
-- ARGV  order bit bitmap_kept_ms request_kept_ms worker room started_at started metrics_cap journal_cap metrics_ms
--   order            with its priority, or with an empty one to have its experiment's
--   bit              of the message in the bitmap, or ""
--   request_kept_ms  how long the request id is remembered, or "" when there is none
-- returns {timestamp} and what was handed out (see claims.lua, which has the other arguments) when queued;
--         {timestamp or ""} when it was queued before; {"uncompiled", document}: see documents.lua
-- include claims.lua
local known, wrong = false, nil
if bit ~= '' then
  local seen = redis.pcall('GETBIT', admitted, bit)
  wrong = refused(seen, admitted, 'string')
  if wrong then return wrong end
  if seen == 1 then return {''} end
end
if request_kept_ms ~= '' then
  known = redis.pcall('GET', request)
  wrong = refused(known, request, 'string')
  if wrong then return wrong end
end
if not known and string.sub(order, 1, 1) == '\t' then
  local found = experiment(read_order(order, '').id)
  if not found.is_known then return uncompiled(found.id) end
  order = (found.priority and found.priority ~= '' and found.priority or 'normal') .. order
end
local queue = queue_of(order)
local timestamp = known or queue_run(redis.pcall, queue, open_runs, order)
wrong = refused(timestamp, queue, 'stream')
if wrong then return wrong end
if bit ~= '' then
  redis.call('SETBIT', admitted, bit, 1)
  redis.call('PEXPIRE', admitted, bitmap_kept_ms)
end
if known then return {known} end
if request_kept_ms ~= '' then redis.call('SET', request, timestamp, 'PX', request_kept_ms) end
hand_out_from(queue, timestamp)
return {timestamp, unpack(handed_out())}
