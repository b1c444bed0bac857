-- Queue one run, once; and hand an order out from its queue to who has room for it, who so needn't be woken.
--
-- KEYS  1 queue  2 open runs of the experiment  3 admitted bitmap  4 request
-- ARGV  1 order (JSON)
--       2 bit of the message in the bitmap, or ""   3 ms the bitmap is kept
--       4 ms the request id is remembered, or ""
--       5 group   6 worker   7 how many orders it has room for
-- returns {timestamp, 1, claims, experiments} when queued (see claims.lua);
--         {timestamp or "", 0, {}, {}} when somebody had queued it before
-- include types.lua
-- include queued.lua
redis.replicate_commands()
local bit, request_ttl, known, wrong = ARGV[2], ARGV[4], false, nil
if bit ~= '' then
  local seen = redis.pcall('GETBIT', KEYS[3], bit)
  wrong = refused(seen, KEYS[3], 'string')
  if wrong then return wrong end
  if seen == 1 then return {'', 0, {}, {}} end
end
if request_ttl ~= '' then
  known = redis.pcall('GET', KEYS[4])
  wrong = refused(known, KEYS[4], 'string')
  if wrong then return wrong end
end
local timestamp = known or queue_run(redis.pcall, KEYS[1], KEYS[2], ARGV[1])
wrong = refused(timestamp, KEYS[1], 'stream')
if wrong then return wrong end
if bit ~= '' then
  redis.call('SETBIT', KEYS[3], bit, 1)
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
if known then return {known, 0, {}, {}} end
if request_ttl ~= '' then redis.call('SET', KEYS[4], timestamp, 'PX', request_ttl) end
if ARGV[7] ~= '0' then -- what is included is made anew by each call, and most have no room
-- include documents.lua
-- include claims.lua
  -- Where there is no group yet, the run is queued all the same.
  local could_claim, claims, experiments = pcall(hand_out, {KEYS[1]}, ARGV[5], ARGV[6], tonumber(ARGV[7]))
  if could_claim then return {timestamp, 1, claims, experiments} end
end
return {timestamp, 1, {}, {}}
