-- The text of an order and the streams that hold orders, and limits by key: see `orders.py`.
-- include types.lua
local QUEUES, BELL = 'fullsend:executor:queue:', 'fullsend:executor:bell'
local HEAD = '^(%l*)\t([^\t\n]+)\t([^\t\n]*)\t(%d+)\t([^\t\n]*)\t([^\t\n]*)[^\n]*\n([^\n]*)\n([^\n]*)\n()'

-- The order in a text, or nil; one that was never claimed takes the id of its entry as its timestamp.
local function read_order(text, entry)
  local priority, id, timestamp, attempt, trigger, serial, reserved, own, rest = string.match(text, HEAD)
  local is_ours = id and (timestamp == '' or string.find(timestamp, '^%d+%-%d+$'))
  if not is_ours then return end
  local order = {
    priority = priority, id = id, timestamp = timestamp ~= '' and timestamp or entry, attempt = attempt,
    trigger = trigger, serial = serial == 'serial', reserved = reserved, own = own, rest = string.sub(text, rest),
  }
  if own ~= '' then order.tool, order.limit = string.match(own, '^own\t([^\t]*)\t(.*)$') end
  return order
end

local function order_text(order)
  local head = {
    order.priority, order.id, order.timestamp, order.attempt, order.trigger, order.serial and 'serial' or '',
  }
  return table.concat({table.concat(head, '\t'), order.reserved, order.own, order.rest}, '\n')
end

-- The stream that an order belongs to.
local function queue_of(text) return QUEUES .. (string.match(text, '^(%l+)\t') or 'normal') end

-- Wake one of the workers that wait for orders; should none wait, the next one that would doesn't.
local function ring()
  if usable(BELL, 'list') and redis.call('LLEN', BELL) == 0 then redis.call('RPUSH', BELL, '1') end
end

-- Queue an order that has its timestamp.
local function queue_again(text)
  redis.call('XADD', queue_of(text), '*', 'order', text)
  ring()
end

-- Give a run its identity: the id of its entry, unique among the experiment's open runs.  Where these can't be
-- noted, it is queued all the same: its begin says what is wrong.  The first command, the one on the queue, goes
-- out by `call`; with `redis.pcall`, the error is returned.
local function queue_run(call, queue, open_runs, text)
  while true do
    local timestamp = call('XADD', queue, '*', 'order', text)
    if timestamp.err or try(open_runs, 'zset', 'ZADD', 'NX', 0, timestamp) ~= 0 then return timestamp end
    redis.call('XDEL', queue, timestamp) -- taken in the same millisecond by a run of another priority
  end
end

local HOLDERS, BLOCKED = 'fullsend:executor:holders:', 'fullsend:executor:blocked:'
local RATE, RETRIES, NUDGES = 'fullsend:executor:rate:', 'fullsend:executor:retries', 'fullsend:executor:nudges'
local NUDGE_MS = 1000

-- A limit from its text.
local function read_limit(text)
  local most, interval, burst, name = string.match(text, '^(%S+) (%S+) (%S+) (.*)$')
  return {most = tonumber(most), interval = tonumber(interval), burst = tonumber(burst), name = name}
end

-- The generic cell rate algorithm: `next` is when the steady rate would have its next begin.
local function take_turn(limit, next, now)
  redis.call('SET', RATE .. limit.name, next + limit.interval, 'PX', math.ceil(next + limit.interval - now))
end

-- Let the oldest order that waits for room try.
local function unblock(blocked)
  local order = usable(blocked, 'list') and redis.call('LINDEX', blocked, 0)
  if order and usable(queue_of(order), 'stream') then
    redis.call('LPOP', blocked)
    queue_again(order)
  end
end

-- A run gives up the room that it took when it began; `limits` is what its record says of it, a line for each.
local function release(limits, run)
  for limit in string.gmatch(limits or '', '[^\n]+') do
    local holders = HOLDERS .. limit
    if usable(holders, 'set') and redis.call('SREM', holders, run) == 1 then unblock(BLOCKED .. limit) end
  end
end
