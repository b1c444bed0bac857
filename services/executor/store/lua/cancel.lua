-- Cancels a run.
--
-- A run that waits ends here: its order can't be claimed any more, and a worker that has claimed it lets it go.
-- A run under way is marked, and its worker ends it.
--
-- KEYS  record open_runs metrics journal experiment
-- ARGV  timestamp result event kept_ms metrics_cap journal_cap state expected replacement group order_head fields[]
--   timestamp      of the run
--   result, event  JSON
--   kept_ms        how long the record and the metrics are kept
--   state, expected, replacement  of the experiment, see state.lua
--   order_head     how an order of the experiment begins, without a priority (JSON)
--   fields         of the record
-- returns "cancelled" | "already" (it was, before) | "cancelling" (it is under way)
--         | "over" (it has ended otherwise, or never was) | "conflict"
-- include types.lua
-- include state.lua
-- include events.lua
-- include limits.lua
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
-- While a run waits for another attempt, its experiment stays `running`.
local was_last = redis.call('EXISTS', record) == 1 and redis.call('ZCOUNT', open_runs, 1, 1) == 0
if was_last and move_state(experiment, 'running', state, expected, replacement) == 'conflict' then
  return 'conflict'
end
redis.call('ZREM', open_runs, timestamp)
-- Before the first attempt, the order has the id of the run, in one of the queues. In another queue, an order of
-- another experiment may have that id.
for _, priority in ipairs({'high', 'normal', 'low'}) do
  local queue = QUEUES .. priority
  local entry = usable(queue, 'stream') and redis.call('XRANGE', queue, timestamp, timestamp)[1]
  local order = entry and entry[2][1] == 'order' and string.gsub(entry[2][2], '^{"priority":"%l+",', '{')
  if order and string.sub(order, 1, #order_head) == order_head then
    local held = redis.pcall('XPENDING', queue, group, timestamp, timestamp, 1)
    if held.err or #held == 0 then redis.call('XDEL', queue, timestamp) end
  end
end
redis.call('HSET', record, unpack(fields))
redis.call('PEXPIRE', record, kept_ms)
emit_metrics(metrics, journal, {event}, metrics_cap, journal_cap, kept_ms)
emit_result(journal, result, journal_cap)
return 'cancelled'
