-- Included by others, after types.lua.  Says something to whoever asks later and to whoever listens now.  In this order:
-- a replica, or a server without memory, refuses to keep things but never to say them.
local PUSHED_AT_ONCE = 1000 -- Lua's stack holds some thousand values

-- An error to return before anything is done, when this user may not publish on the channel.
local function silenced(channel)
  if not redis.acl_check_cmd then return nil end -- before Redis 7 a new user may publish everywhere
  if redis.acl_check_cmd('PUBLISH', channel, '') then return nil end
  return redis.error_reply('NOPERM no permission to publish on the channel ' .. channel)
end

-- The metric events among ARGV: the experiment's list, the journal, channel.  The list is kept as long as a record.
-- A list or a journal that somebody made something else of must not stop a run.
local function emit_metrics(list, journal, first, last, list_cap, journal_cap, kept_ms)
  local length
  for i = first, last, PUSHED_AT_ONCE do
    length = try(list, 'list', 'RPUSH', unpack(ARGV, i, math.min(last, i + PUSHED_AT_ONCE - 1)))
  end
  if length then
    if length > tonumber(list_cap) then redis.call('LTRIM', list, -list_cap, -1) end
    redis.call('PEXPIRE', list, kept_ms)
  end
  for i = first, last do
    try(journal, 'stream', 'XADD', 'MAXLEN', '~', journal_cap, '*', 'kind', 'metric', 'data', ARGV[i])
    redis.call('PUBLISH', 'fullsend:metrics', ARGV[i])
  end
end

-- The message about a run's end: journal and channel.
local function emit_result(journal, message, journal_cap)
  try(journal, 'stream', 'XADD', 'MAXLEN', '~', journal_cap, '*', 'kind', 'result', 'data', message)
  redis.call('PUBLISH', 'fullsend:experiment_results', message)
end
