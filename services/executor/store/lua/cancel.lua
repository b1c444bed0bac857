-- Somebody asks for a run's end.
--
-- A run that waits ends here: nobody can claim it any more, and who has claimed it lets it go; a run
-- under way is marked, and the worker that has it ends it.
--
-- KEYS  1 record  2 open runs  3 metrics list  4 journal  5 experiment
-- ARGV  1 timestamp of the run  2 result (JSON)  3 event (JSON)  4 ms the record and the metrics are kept
--       5 metrics cap  6 journal cap
--       7 state of the experiment, or "" to leave it  8 expected document  9 replacement  (see state.lua)
--       10 group  11 how an order of the experiment begins, without a priority (JSON)  12.. fields of the record
-- returns "cancelled" | "already" (it was, before) | "cancelling" (it is under way)
--         | "over" (it has ended otherwise, or never was) | "conflict"
-- include types.lua
-- include state.lua
-- include events.lua
-- include limits.lua
redis.replicate_commands()
local mute = silenced('fullsend:metrics') or silenced('fullsend:experiment_results')
if mute then return mute end
local wrong = misfit(KEYS[1], 'hash', KEYS[2], 'zset')
if wrong then return wrong end
local open = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not open then return redis.call('HGET', KEYS[1], 'status') == 'cancelled' and 'already' or 'over' end
if tonumber(open) == 1 then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  return 'cancelling'
end
-- A run that waits for another attempt has left its experiment `running`.
local was_last = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('ZCOUNT', KEYS[2], 1, 1) == 0
if was_last and move_state(KEYS[5], 'running', ARGV[7], ARGV[8], ARGV[9]) == 'conflict' then return 'conflict' end
redis.call('ZREM', KEYS[2], ARGV[1])
-- Where it is the first time that it waits, its order has the same id: in one of the queues, while in another
-- that may be the id of another experiment's.
for _, priority in ipairs({'high', 'normal', 'low'}) do
  local queue = QUEUES .. priority
  local entry = usable(queue, 'stream') and redis.call('XRANGE', queue, ARGV[1], ARGV[1])[1]
  local order = entry and entry[2][1] == 'order' and string.gsub(entry[2][2], '^{"priority":"%l+",', '{')
  if order and string.sub(order, 1, #ARGV[11]) == ARGV[11] then
    local held = redis.pcall('XPENDING', queue, ARGV[10], ARGV[1], ARGV[1], 1)
    if held.err or #held == 0 then redis.call('XDEL', queue, ARGV[1]) end
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 12))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
emit_metrics(KEYS[3], KEYS[4], 3, 3, ARGV[5], ARGV[6], ARGV[4])
emit_result(KEYS[4], ARGV[2], ARGV[6])
return 'cancelled'
