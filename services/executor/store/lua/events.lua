-- Included by others.  Says something to whoever asks later and to whoever listens now.  In this order:
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

-- One metric event: the experiment's list, the journal, channel.  The list is kept as long as a record.
local function emit_metric(list, journal, event, list_cap, journal_cap, kept_ms)
  redis.pcall('RPUSH', list, event) -- a list that somebody made something else of must not stop a run
  redis.pcall('LTRIM', list, -list_cap, -1)
  redis.pcall('PEXPIRE', list, kept_ms)
  redis.call('XADD', journal, 'MAXLEN', '~', journal_cap, '*', 'kind', 'metric', 'data', event)
  redis.call('PUBLISH', 'fullsend:metrics', event)
end

-- The message about a run's end: journal and channel.
local function emit_result(journal, message, journal_cap)
  redis.call('XADD', journal, 'MAXLEN', '~', journal_cap, '*', 'kind', 'result', 'data', message)
  redis.call('PUBLISH', 'fullsend:experiment_results', message)
end
