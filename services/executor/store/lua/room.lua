-- Included by begin.lua where a run has limits, after types.lua and limits.lua.  Looks for room under all of them.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The limits among KEYS and ARGV from these on; or nil, and an error to return before anything is done.
local function limits_from(first_key, first_arg)
  local limits = {}
  for i = 0, (#KEYS - first_key + 1) / 3 - 1 do
    local key, arg = first_key + 3 * i, first_arg + 5 * i
    limits[i + 1] = {
      holders = KEYS[key], blocked = KEYS[key + 1], rate = KEYS[key + 2], name = ARGV[arg],
      most = tonumber(ARGV[arg + 1]), interval = tonumber(ARGV[arg + 2]), burst = tonumber(ARGV[arg + 3]),
      reserved = ARGV[arg + 4],
    }
    local wrong = misfit(KEYS[key], 'set', KEYS[key + 1], 'list', KEYS[key + 2], 'string')
    if wrong then return nil, wrong end
  end
  return limits
end

-- The generic cell rate algorithm: `next` is when the steady rate would have its next begin.
local function take_turn(limit, next)
  redis.call('SET', limit.rate, next + limit.interval, 'PX', math.ceil(next + limit.interval - now))
end

-- Whether there is room; if not, it is seen to that the order comes again.
local function has_room(limits, order, retries, nudges)
  for _, limit in ipairs(limits) do
    if limit.most > 0 and redis.call('SCARD', limit.holders) >= limit.most then
      redis.call('RPUSH', limit.blocked, order)
      redis.call('ZADD', nudges, 'NX', now + NUDGE_MS, limit.name)
      return false
    end
  end
  for _, limit in ipairs(limits) do
    if limit.interval > 0 and limit.reserved ~= '' then
      limit.next = math.max(tonumber(redis.call('GET', limit.rate) or 0), now)
      local due = limit.next - (limit.burst - 1) * limit.interval
      if due > now then
        take_turn(limit, limit.next)
        redis.call('ZADD', retries, due, limit.reserved)
        return false
      end
    end
  end
  return true
end

-- Take the room that was found.
local function take_room(limits, run)
  for _, limit in ipairs(limits) do
    if limit.most > 0 then redis.call('SADD', limit.holders, run) end
    if limit.next then take_turn(limit, limit.next) end
  end
end
