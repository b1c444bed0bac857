-- Included by others, after documents.lua.  Hands orders out to a worker, the preferred queue first, without
-- waiting for any.
--
-- returns triples {queue, entry, fields}, and triples {id, type, content} of their experiments; of an experiment that
--         can't be read here, or whose id can't be told from the order's text, there is none
local EXPERIMENTS = 'experiments:'

local function hand_out(queues, group, worker, count)
  local claims, experiments, seen = {}, {}, {}

  local function note_experiment(order)
    local id = string.match(order, '^[^\\]-"experiment_id":"([^"\\]+)"')
    if not id or seen[id] then return end
    seen[id] = true
    -- Whatever is wrong with it, the orders are handed out by now.
    local can_read, found = pcall(document, EXPERIMENTS .. id)
    if can_read then experiments[#experiments + 1] = {id, found[1], found[2]} end
  end

  for _, queue in ipairs(queues) do
    local free = count - #claims
    if free <= 0 then break end
    local answer = redis.call('XREADGROUP', 'GROUP', group, worker, 'COUNT', free, 'STREAMS', queue, '>')
    for _, entry in ipairs(answer and answer[1][2] or {}) do
      claims[#claims + 1] = {queue, entry[1], entry[2]}
      if entry[2][1] == 'order' then note_experiment(entry[2][2]) end
    end
  end
  return claims, experiments
end
