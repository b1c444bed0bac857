-- Included by others, after types.lua.  Says something to whoever asks later and to whoever listens now.  In this order:
-- a replica, or a server without memory, refuses to keep things but never to say them.

-- An error to return before anything is done, when this user may not publish on one of the channels.
local function silenced(...)
  if not redis.acl_check_cmd then return nil end -- before Redis 7 a new user may publish everywhere
  for _, channel in ipairs({...}) do
    if not redis.acl_check_cmd('PUBLISH', channel, '') then
      return redis.error_reply('NOPERM no permission to publish on the channel ' .. channel)
    end
  end
end

local function note(journal, cap, kind, message)
  if usable(journal, 'stream') then
    redis.call('XADD', journal, 'MAXLEN', '~', cap, '*', 'kind', kind, 'data', message)
  end
end

-- One metric event: the experiment's list, the journal, channel.  The list is kept as long as a record.
-- A list or a journal that somebody made something else of must not stop a run.
local function emit_metric(list, journal, event, list_cap, journal_cap, kept_ms)
  if usable(list, 'list') then
    redis.call('RPUSH', list, event)
    redis.call('LTRIM', list, -list_cap, -1)
    redis.call('PEXPIRE', list, kept_ms)
  end
  note(journal, journal_cap, 'metric', event)
  redis.call('PUBLISH', 'fullsend:metrics', event)
end

-- The message about a run's end: journal and channel.
local function emit_result(journal, message, journal_cap)
  note(journal, journal_cap, 'result', message)
  redis.call('PUBLISH', 'fullsend:experiment_results', message)
end
