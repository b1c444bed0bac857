-- Included by others.  Says something to whoever listens now and to whoever asks later.

-- One metric event: channel, the experiment's list, the journal.
local function emit_metric(list, journal, event, list_cap, journal_cap)
  redis.call('PUBLISH', 'fullsend:metrics', event)
  redis.call('RPUSH', list, event)
  redis.call('LTRIM', list, -list_cap, -1)
  redis.call('XADD', journal, 'MAXLEN', '~', journal_cap, '*', 'kind', 'metric', 'data', event)
end

-- The message about a run's end: channel and journal.
local function emit_result(journal, message, journal_cap)
  redis.call('PUBLISH', 'fullsend:experiment_results', message)
  redis.call('XADD', journal, 'MAXLEN', '~', journal_cap, '*', 'kind', 'result', 'data', message)
end
