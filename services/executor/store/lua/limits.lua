-- Limits by key: orders that wait for room, and runs that give room up. See `limits.py`.
-- include types.lua
local QUEUES = 'fullsend:executor:queue:'
local HOLDERS = 'fullsend:executor:holders:'
local BLOCKED = 'fullsend:executor:blocked:'
local NUDGE_MS = 1000

-- The stream of an order. The priority is its first member; cjson may not be able to read the rest.
local function queue_of(order) return QUEUES .. (string.match(order, '^{"priority":"(%l+)"') or 'normal') end

-- Queues the oldest order that waits for room under a limit.
local function unblock(blocked)
  local order = usable(blocked, 'list') and redis.call('LINDEX', blocked, 0)
  if order and usable(queue_of(order), 'stream') then
    redis.call('LPOP', blocked)
    redis.call('XADD', queue_of(order), '*', 'order', order)
  end
end

-- Gives up the room that a run took when it began; `limits` are the limits in its record, one a line, or nil.
local function release(limits, run)
  for limit in string.gmatch(limits or '', '[^\n]+') do
    local holders = HOLDERS .. limit
    if usable(holders, 'set') and redis.call('SREM', holders, run) == 1 then unblock(BLOCKED .. limit) end
  end
end
