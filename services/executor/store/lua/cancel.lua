-- Ends a run that waits, and marks one that is under way so that its worker ends it.
--
-- KEYS  record open_runs metrics journal
-- ARGV  timestamp experiment_id result event kept_ms metrics_cap journal_cap state fields[]
--   result, event  JSON
--   state          the experiment's next one
--   fields         of the record
-- returns "cancelled" | "already" (it was, before) | "cancelling" (it is under way)
--         | "over" (it has ended otherwise, or never was); {"uncompiled", document}: see documents.lua
-- include events.lua
-- include documents.lua
-- include orders.lua
-- include run_index.lua
local mute = silenced('fullsend:metrics') or silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(record, 'hash', open_runs, 'zset')
if wrong then return wrong end
local open = redis.call('ZSCORE', open_runs, timestamp)
if not open then return redis.call('HGET', record, 'status') == 'cancelled' and 'already' or 'over' end
if tonumber(open) == 1 then
  redis.call('HSET', record, 'cancel', '1')
  return 'cancelling'
end
-- A run that waits for another attempt has left its experiment `running`.
local was_last = redis.call('EXISTS', record) == 1 and redis.call('ZCOUNT', open_runs, 1, 1) == 0
if was_last and not end_running(experiment_id, state) then return uncompiled(experiment_id) end
redis.call('ZREM', open_runs, timestamp)
-- Where it waits for the first time, its order has the same id: in one of the queues, while in another
-- that may be the id of another experiment's.
for _, priority in ipairs({'high', 'normal', 'low'}) do
  local queue = QUEUES .. priority
  local entry = usable(queue, 'stream') and redis.call('XRANGE', queue, timestamp, timestamp)[1]
  local order = entry and entry[2][1] == 'order' and read_order(entry[2][2], timestamp)
  if order and order.id == experiment_id then
    local held = redis.pcall('XPENDING', queue, 'executors', timestamp, timestamp, 1)
    if held.err or #held == 0 then redis.call('XDEL', queue, timestamp) end
  end
end
redis.call('HSET', record, unpack(fields))
redis.call('PEXPIRE', record, kept_ms)
local run = experiment_id .. ':' .. timestamp
index_run(run, experiment_id, timestamp)
index_end(run, timestamp, fields)
emit_metrics(metrics, journal, {event}, metrics_cap, journal_cap, kept_ms)
emit_result(journal, result, journal_cap)
return 'cancelled'
