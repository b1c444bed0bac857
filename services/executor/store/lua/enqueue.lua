-- Queues runs, each once, and hands orders out from their queues to a worker that has room.
--
-- ARGV  worker room started_at started metrics_cap journal_cap metrics_ms bitmap_kept_ms submissions[]
--   submissions  see `Submission` in `queue.py`
-- returns for each submission {timestamp}, or {timestamp or ""} when it was queued before; {"uncompiled", document}: see
--         documents.lua. The last answer with a timestamp, or with "", goes on with what was handed out (see claims.lua,
--         which has the other arguments).
-- include batches.lua
-- include claims.lua
local newest, last = {}, nil

local function queued(timestamp)
  last = {timestamp}
  return last
end

local function enqueue(one)
  local known, wrong = false, nil
  if one.bit >= 0 then
    local seen = redis.pcall('GETBIT', one.admitted, one.bit)
    wrong = refused(seen, one.admitted, 'string')
    if wrong then return wrong end
    if seen == 1 then return queued('') end
  end
  if one.request_kept_ms > 0 then
    known = redis.pcall('GET', one.request)
    wrong = refused(known, one.request, 'string')
    if wrong then return wrong end
  end
  local order = one.order
  if not known and string.sub(order, 1, 1) == '\t' then
    local found = experiment(read_order(order, '').id)
    if not found.is_known then return uncompiled(found.id) end
    order = (found.priority and found.priority ~= '' and found.priority or 'normal') .. order
  end
  local queue = queue_of(order)
  local timestamp = known or queue_run(redis.pcall, queue, one.open_runs, order)
  wrong = refused(timestamp, queue, 'stream')
  if wrong then return wrong end
  if one.bit >= 0 then
    redis.call('SETBIT', one.admitted, one.bit, 1)
    redis.call('PEXPIRE', one.admitted, bitmap_kept_ms)
  end
  if known then return queued(known) end
  if one.request_kept_ms > 0 then redis.call('SET', one.request, timestamp, 'PX', one.request_kept_ms) end
  newest[queue] = timestamp
  return queued(timestamp)
end

local answers = for_each(submissions, enqueue)
for _, priority in ipairs(PRIORITIES) do
  local queue = QUEUES .. priority
  if newest[queue] then hand_out_from(queue, newest[queue]) end
end
if last then
  for _, part in ipairs(handed_out()) do last[#last + 1] = part end
end
return answers
