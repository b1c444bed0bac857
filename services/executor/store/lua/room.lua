-- Looks for room under the limits of a run, and takes it.
-- include limits.lua

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Returns a table for each limit; or nil and an error reply, before anything is done.
--   names   three keys for each limit: holders, blocked orders, rate
--   values  five for each limit: its key, runs at once or 0, ms between begins or 0, burst, and
--           the order once its turn under this limit is reserved (JSON), or "" if it was
local function limits_from(names, values)
  local limits = {}
  for i = 0, #names / 3 - 1 do
    local key, value = 3 * i, 5 * i
    limits[i + 1] = {
      holders = names[key + 1], blocked = names[key + 2], rate = names[key + 3], name = values[value + 1],
      most = tonumber(values[value + 2]), interval = tonumber(values[value + 3]),
      burst = tonumber(values[value + 4]), reserved = values[value + 5],
    }
    local wrong = misfit(names[key + 1], 'set', names[key + 2], 'list', names[key + 3], 'string')
    if wrong then return nil, wrong end
  end
  return limits
end

-- The generic cell rate algorithm: `next` is when the steady rate would have its next begin.
local function take_turn(limit, next, now)
  redis.call('SET', limit.rate, next + limit.interval, 'PX', math.ceil(next + limit.interval - now))
end

-- Whether there is room under all limits. If not, the order is kept and comes again.
local function has_room(limits, order, retries, nudges, now)
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
        take_turn(limit, limit.next, now)
        redis.call('ZADD', retries, due, limit.reserved)
        return false
      end
    end
  end
  return true
end

-- Takes the room that `has_room` found.
local function take_room(limits, run, now)
  for _, limit in ipairs(limits) do
    if limit.most > 0 then redis.call('SADD', limit.holders, run) end
    if limit.next then take_turn(limit, limit.next, now) end
  end
end
