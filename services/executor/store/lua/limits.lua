-- Limits by key: see `Limit` in `orders.py`.
-- include orders.lua
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
