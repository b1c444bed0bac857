-- Hands orders out to a worker, and begins their runs.
--
-- The script that includes this has these arguments:
--   worker      its name
--   room        how many runs it has slots for
--   started_at  now, ISO 8601
--   started     now, unix seconds
--   metrics_cap, journal_cap, metrics_ms  how much is kept, and how long
-- include events.lua
-- include documents.lua
-- include orders.lua
-- include run_index.lua
room = tonumber(room)
local GROUP = 'executors'
local RECORD, METRICS, OPEN = 'experiment_runs:', 'metrics:', 'fullsend:executor:open:'
local JOURNAL = 'fullsend:executor:journal'
local TOOLS, WANTED, WORKERS = 'fullsend:executor:tools:', 'fullsend:executor:wanted', 'fullsend:executor:workers'
local FOUND = '-' -- a tool that a worker has, but can't begin yet
local LOOKED = '^!(%d+)$' -- one that a worker doesn't have, and when it began to look for it (ms)
local ASIDE = '@' -- and a tool: the consumer that holds the orders which wait for it
local PRIORITIES = {'high', 'normal', 'low'}
local EXAMINED_AT_ONCE = 200

local answer = {claims = {}, experiments = {}, documents = {}, wanted = {}, let_go = {}}
local told = {}
local absent = {} -- tools whose orders begin here to be reported: those of up to this time (ms), or '+' for all
local searched = {} -- tools that this worker has looked for in vain a moment ago

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The run doesn't begin: it is "waiting" for room, "cancelled", or "under way" by another delivery of its order.
local function let_go(queue, entry, run, why)
  redis.call('XACK', queue, GROUP, entry)
  redis.call('XDEL', queue, entry)
  answer.let_go[#answer.let_go + 1] = {run, why}
end

local function give(what, queue, entry, text, detail)
  answer.claims[#answer.claims + 1] = {what, queue, entry, text, detail or ''}
end

-- Tell the worker what it needs to know of an experiment, once.
local function tell(found)
  if told[found.id] then return end
  told[found.id] = true
  if found.is_known then
    answer.experiments[#answer.experiments + 1] = {found.id, found.body, found.state or ''}
  else
    answer.documents[#answer.documents + 1] = {found.id, found.kind, found.content, found.digest}
  end
end

-- Wake a worker by its own bell.
local function ring_for(name)
  local bell = BELL .. ':' .. name
  if redis.call('LLEN', bell) == 0 then
    redis.call('RPUSH', bell, '1')
    redis.call('PEXPIRE', bell, 60000)
  end
end

-- What each other worker that lives tells of a tool, by name; nil for nothing.
local function told_by_others(tool)
  local names, has = {}, {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, now_ms(), '+inf')) do
    if name ~= worker then
      names[#names + 1] = name
      has[name] = redis.call('HGET', TOOLS .. name, tool) or nil
    end
  end
  return names, has
end

-- Another worker that lives and can begin the tool.
local function other_with(tool)
  local names, has = told_by_others(tool)
  for _, name in ipairs(names) do
    if has[name] and has[name] ~= FOUND and not string.find(has[name], LOOKED) then return name end
  end
end

-- The time up to which this worker and all others that live have looked for a tool in vain; nil while one of them has
-- it, or hasn't looked since `entry`, the order that waits the longest; such ones are woken.
local function missing_until(tool, entry)
  local since = tonumber(string.match(entry or '0', '^%d+'))
  local oldest = tonumber(string.match(redis.call('HGET', TOOLS .. worker, tool) or '', LOOKED)) or 0
  local names, has = told_by_others(tool)
  for _, name in ipairs(names) do
    local looked = tonumber(string.match(has[name] or '', LOOKED)) or 0
    if looked < since or looked == 0 then ring_for(name) end
    oldest = math.min(oldest, looked)
  end
  return oldest > 0 and oldest or nil
end

-- The first order that waits for a tool; nil if there is none.
local function first_aside(tool)
  local first
  for _, priority in ipairs(PRIORITIES) do
    local waiting = redis.pcall('XPENDING', QUEUES .. priority, GROUP, '-', '+', 1, ASIDE .. tool)
    local entry = not waiting.err and waiting[1] and waiting[1][1]
    local at = entry and tonumber(string.match(entry, '^%d+'))
    if at and (not first or at < tonumber(string.match(first, '^%d+'))) then first = entry end
  end
  return first
end

-- The limit that the tool has; nil when this worker can't begin it.  A tool that nobody has counts as one only for
-- orders that were put aside before all had looked.
local function limit_of_tool(tool, is_aside)
  if tool == '' or absent[tool] == '+' or (is_aside and absent[tool]) then return '' end
  local limit = redis.call('HGET', TOOLS .. worker, tool)
  if limit and limit ~= FOUND and not string.find(limit, LOOKED) then return limit end
end

-- Let no worker hold an order until one tells that it can begin the tool.
local function put_aside(queue, entry, tool)
  redis.call('XCLAIM', queue, GROUP, ASIDE .. tool, 0, entry, 'JUSTID')
  redis.call('SADD', WANTED, tool)
  answer.wanted[tool] = true
  local other = other_with(tool)
  if other then ring_for(other) end
end

-- Whether there is room under the limits; if not, it is seen to that the order comes again.
local function has_room(limits, order, run)
  for _, limit in ipairs(limits) do
    local holders = HOLDERS .. limit.name
    local is_full = limit.most > 0 and redis.call('SCARD', holders) >= limit.most
    if is_full and redis.call('SISMEMBER', holders, run) == 0 then
      redis.call('RPUSH', BLOCKED .. limit.name, order_text(order))
      redis.call('ZADD', NUDGES, 'NX', now_ms() + NUDGE_MS, limit.name)
      return false
    end
  end
  for _, limit in ipairs(limits) do
    local has_waited = string.find('\t' .. order.reserved .. '\t', '\t' .. limit.name .. '\t', 1, true)
    if limit.interval > 0 and not has_waited then
      local now = now_ms()
      limit.next = math.max(tonumber(redis.call('GET', RATE .. limit.name) or 0), now)
      local due = limit.next - (limit.burst - 1) * limit.interval
      if due > now then
        take_turn(limit, limit.next, now)
        order.reserved = order.reserved == '' and limit.name or order.reserved .. '\t' .. limit.name
        redis.call('ZADD', RETRIES, due, order_text(order))
        return false
      end
    end
  end
  return true
end

local function take_room(limits, run)
  local names = {}
  for i, limit in ipairs(limits) do
    if limit.most > 0 then redis.call('SADD', HOLDERS .. limit.name, run) end
    if limit.next then take_turn(limit, limit.next, now_ms()) end
    names[i] = limit.name
  end
  return table.concat(names, '\n')
end

local function write_begin(order, run, record, lease, tool, limits, had_begun)
  local fields = {
    'run_id', run, 'experiment_id', order.id, 'attempt', order.attempt, 'trigger', order.trigger,
    'started_at', started_at, 'worker', worker, 'status', 'running', 'lease', lease, 'tool', tool,
  }
  local count = tool == '' and 16 or 18
  if limits ~= '' then
    fields[count + 1], fields[count + 2] = 'limits', limits
    count = count + 2
  end
  redis.call('HSET', record, unpack(fields, 1, count))
  if had_begun then redis.call('PERSIST', record) end
  redis.call('ZADD', OPEN .. order.id, 1, order.timestamp)
  if not had_begun then index_run(run, order.id, order.timestamp) end
  local event = '{"experiment_id":' .. json_string(order.id) .. ',"run_id":' .. json_string(run)
    .. ',"event":"run_started","timestamp":' .. started .. ',"attempt":' .. order.attempt
    .. ',"tool":' .. (tool == '' and 'null' or json_string(tool)) .. '}'
  emit_metrics(METRICS .. order.id, JOURNAL, {event}, metrics_cap, journal_cap, metrics_ms)
end

-- Whether the delivery with another lease of the same run is still held, whose attempt is under way then.
local function is_held(lease)
  local priority, entry = string.match(lease, '/(%l+)/(%d+%-%d+)$')
  if not priority then return false end
  local pending = redis.pcall('XPENDING', QUEUES .. priority, GROUP, entry, entry, 1)
  return not pending.err and #pending > 0
end

-- Begin a run that this worker holds the order of, or say in the answer why not.
local function begin(queue, entry, fields, is_aside)
  local text = fields and fields[1] == 'order' and fields[2] or ''
  local order = read_order(text, entry)
  if not order then return give('unreadable', queue, entry, text) end
  local run = order.id .. ':' .. order.timestamp
  local record, open_runs = RECORD .. run, OPEN .. order.id
  local lease = worker .. '/' .. string.sub(queue, #QUEUES + 1) .. '/' .. entry

  local found
  if order.own == '' then
    found = experiment(order.id)
    tell(found)
  end
  local stored = redis.pcall('HMGET', record, 'lease', 'cancel')
  local wrong = refused(stored, record, 'hash')
  if wrong then return give('broken', queue, entry, text, wrong.err) end
  local held, is_cancelled = stored[1], stored[2]
  if held == lease then return give('begun', queue, entry, text) end -- by a call whose answer was lost
  local open = redis.pcall('ZSCORE', open_runs, order.timestamp)
  wrong = refused(open, open_runs, 'zset')
  if wrong then return give('broken', queue, entry, text, wrong.err) end

  if open == '1' and held and is_held(held) then return let_go(queue, entry, run, 'under way') end
  if open and is_cancelled then return give('cancelled', queue, entry, text) end
  if found and not found.is_known then return give('uncompiled', queue, entry, text) end
  if open and found and found.state == 'archived' and not found.is_refused then
    return give('archived', queue, entry, text)
  end
  local tool, limit = order.tool, order.limit
  if found then tool, limit = found.tool, found.limit end
  local limit_of_its_tool = limit_of_tool(tool, is_aside)
  if open and not limit_of_its_tool then return put_aside(queue, entry, tool) end

  local limits = {}
  for _, one in ipairs({limit, limit_of_its_tool or '', order.serial and '1 0 1 serial:' .. order.id or ''}) do
    if one ~= '' then limits[#limits + 1] = read_limit(one) end
  end
  for _, one in ipairs(limits) do
    wrong = misfit(HOLDERS .. one.name, 'set', BLOCKED .. one.name, 'list', RATE .. one.name, 'string',
      RETRIES, 'zset', NUDGES, 'zset')
    if wrong then return give('broken', queue, entry, text, wrong.err) end
  end
  if not open then -- the run was cancelled while it waited
    for _, one in ipairs(limits) do unblock(BLOCKED .. one.name) end
    return let_go(queue, entry, run, 'cancelled')
  end
  if not has_room(limits, order, run) then return let_go(queue, entry, run, 'waiting') end

  if found then move_state(found, nil, 'running') end
  write_begin(order, run, record, lease, tool, #limits > 0 and take_room(limits, run) or '', held)
  give('begun', queue, entry, text)
end

-- Entries that were put aside for a tool which this worker can begin now, of any priority.
local function take_aside(tool)
  for _, priority in ipairs(PRIORITIES) do
    local queue = QUEUES .. priority
    local free = room - #answer.claims
    local waiting =
      redis.pcall('XPENDING', queue, GROUP, '-', absent[tool] or '+', math.max(free, 1), ASIDE .. tool)
    if waiting.err then waiting = {} end
    for i = 1, math.min(#waiting, free) do
      local entry = waiting[i][1]
      local claimed = redis.call('XCLAIM', queue, GROUP, worker, 0, entry)
      if claimed[1] and claimed[1][2] then
        begin(queue, entry, claimed[1][2], true)
      else
        redis.call('XACK', queue, GROUP, entry)
      end
    end
  end
  if first_aside(tool) then return end
  redis.call('SREM', WANTED, tool)
  for _, priority in ipairs(PRIORITIES) do
    redis.pcall('XGROUP', 'DELCONSUMER', QUEUES .. priority, GROUP, ASIDE .. tool)
  end
end

-- After the orders of a tool that nobody has: this worker looks again only for those that came after its look.
local function look_again(tool)
  local entry = first_aside(tool)
  missing_until(tool, entry) -- wakes others
  local looked = tonumber(string.match(redis.call('HGET', TOOLS .. worker, tool) or '', LOOKED)) or 0
  answer.wanted[tool] = entry and looked < tonumber(string.match(entry, '^%d+')) or nil
end

-- Hand orders out until there is no room left, the preferred queue first, without waiting for any.
-- Returns whether there may be more, and the entry that was delivered last.
local function hand_out(queues)
  for _, tool in ipairs(redis.call('SMEMBERS', WANTED)) do
    if limit_of_tool(tool, true) then take_aside(tool) else answer.wanted[tool] = true end
    if searched[tool] then look_again(tool) end
  end
  local left, last = EXAMINED_AT_ONCE, nil
  for _, queue in ipairs(queues) do
    while left > 0 and #answer.claims < room do
      local count = math.min(left, room - #answer.claims)
      local got = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', queue, '>')
      if not got then break end
      for _, entry in ipairs(got[1][2]) do begin(queue, entry[1], entry[2]) end
      left = left - #got[1][2]
      last = got[1][2][#got[1][2]][1]
    end
  end
  return left <= 0 or #answer.claims >= room, last
end

-- Hand out from a queue in which `newest` was just queued.  Where there is no group yet, that stays queued.
local function hand_out_from(queue, newest)
  if room == 0 or silenced('fullsend:metrics') then return ring() end
  local is_done, result, last = pcall(hand_out, {queue})
  if is_done then
    if result and last ~= newest then ring() end
    return
  end
  local text = type(result) == 'table' and result.err or result
  if not string.find(text, 'NOGROUP', 1, true) then error(text) end
  ring()
end

-- What the worker is answered: see `claims.py`.
local function handed_out()
  local wanted = {}
  for tool in pairs(answer.wanted) do wanted[#wanted + 1] = tool end
  return {answer.claims, answer.experiments, answer.documents, wanted, answer.let_go}
end
