-- Ends runs: everything that a neighbour can observe of an end happens here, or nothing does.
--
-- KEYS  journal
-- ARGV  kept_ms metrics_cap journal_cap endings[]
--   endings  see `_Ending` in `runs.py`
-- returns for each ending {"finished" | "stale" (the attempt was taken away; the outcome is dropped)
--          | "done" (this call was executed before), keys that the call did without until then ...};
--         {"uncompiled", document}: see documents.lua.
--         A run ends also where one of its keys has another type than it should have.
-- include batches.lua
-- include events.lua
-- include documents.lua
-- include orders.lua
-- include run_index.lua
local mute = silenced('fullsend:metrics') or silenced('fullsend:experiment_results')
if mute then return mute end

local function finish(one)
  local record, open_runs = one.record, one.open_runs
  local readable = try(record, 'hash', 'HMGET', 'lease', 'status', 'limits')
  local held = readable or {}
  if one.lease ~= '' then
    if held[1] ~= one.lease then return {'stale', unpack(skipped)} end
    if held[2] ~= 'running' then return {'done'} end
  elseif #redis.call('XRANGE', one.queue, one.entry, one.entry) == 0 then
    return {'done'}
  end

  local is_last = one.lease ~= '' and (try(open_runs, 'zset', 'ZCOUNT', 1, 1) or 1) <= 1
  if is_last and not end_running(one.experiment_id, one.state) then return uncompiled(one.experiment_id) end

  if readable then
    redis.call('HSET', record, unpack(one.fields))
    redis.call('PEXPIRE', record, kept_ms)
    if one.lease == '' then index_run(one.run, one.experiment_id, one.timestamp) end
    index_end(one.run, one.timestamp, one.fields)
  end
  emit_metrics(one.metrics, journal, one.events, metrics_cap, journal_cap, kept_ms)
  emit_result(journal, one.result, journal_cap)
  try(open_runs, 'zset', 'ZREM', one.timestamp)
  release(held[3], one.run)
  try(one.queue, 'stream', 'XACK', 'executors', one.entry)
  try(one.queue, 'stream', 'XDEL', one.entry)
  return {'finished', unpack(skipped)}
end

return for_each(endings, finish)
