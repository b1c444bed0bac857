-- Included by others, after types.lua.  Limits by key, see `limits.py`.
local QUEUES = 'fullsend:executor:queue:'
local HOLDERS = 'fullsend:executor:holders:'
local BLOCKED = 'fullsend:executor:blocked:'
local NUDGE_MS = 1000

-- The stream that an order belongs to.  Its priority comes first; the rest may hold what cjson can't read.
local function queue_of(order) return QUEUES .. (string.match(order, '^{"priority":"(%l+)"') or 'normal') end

-- Let the oldest order that waits for room try.
local function unblock(blocked)
  local order = usable(blocked, 'list') and redis.call('LINDEX', blocked, 0)
  if order and usable(queue_of(order), 'stream') then
    redis.call('LPOP', blocked)
    redis.call('XADD', queue_of(order), '*', 'order', order)
  end
end

-- A run gives up the room that it took when it began; `limits` is what its record says of it, a line for each.
local function release(limits, run)
  for limit in string.gmatch(limits or '', '[^\n]+') do
    local holders = HOLDERS .. limit
    if usable(holders, 'set') and redis.call('SREM', holders, run) == 1 then unblock(BLOCKED .. limit) end
  end
end
