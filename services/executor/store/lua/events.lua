-- Publishes metric events and results, and keeps them for those who ask later.
--
-- Writes come before PUBLISH: a replica, or a server without memory, refuses a write but never a PUBLISH.
-- include types.lua
local PUSHED_AT_ONCE = 1000 -- Lua's stack holds some thousand values

-- An error reply when this user may not publish on the channel, else nil. To be called before the first write.
local function silenced(channel)
  if not redis.acl_check_cmd then return nil end -- before Redis 7 a new user may publish everywhere
  if redis.acl_check_cmd('PUBLISH', channel, '') then return nil end
  return redis.error_reply('NOPERM no permission to publish on the channel ' .. channel)
end

-- A text as JSON writes it.
local ESCAPES = {['"'] = '\\"', ['\\'] = '\\\\'}
local function json_string(text)
  return '"' .. string.gsub(text, '[%c"\\]', function(char)
    return ESCAPES[char] or string.format('\\u%04x', string.byte(char))
  end) .. '"'
end

-- Adds metric events (JSON) to the experiment's list and to the journal, and publishes them. The list expires
-- when a record would. A list or a journal of another type must not stop a run.
local function emit_metrics(list, journal, events, list_cap, journal_cap, kept_ms)
  local length
  for first = 1, #events, PUSHED_AT_ONCE do
    local last = math.min(#events, first + PUSHED_AT_ONCE - 1)
    length = try(list, 'list', 'RPUSH', unpack(events, first, last))
  end
  if length then
    if length > tonumber(list_cap) then redis.call('LTRIM', list, -list_cap, -1) end
    redis.call('PEXPIRE', list, kept_ms)
  end
  for _, event in ipairs(events) do
    try(journal, 'stream', 'XADD', 'MAXLEN', '~', journal_cap, '*', 'kind', 'metric', 'data', event)
    redis.call('PUBLISH', 'fullsend:metrics', event)
  end
end

-- Adds the message (JSON) about the end of a run to the journal, and publishes it.
local function emit_result(journal, message, journal_cap)
  try(journal, 'stream', 'XADD', 'MAXLEN', '~', journal_cap, '*', 'kind', 'result', 'data', message)
  redis.call('PUBLISH', 'fullsend:experiment_results', message)
end
