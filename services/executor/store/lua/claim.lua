-- A worker takes orders, without waiting for any, and is told what is stored of their experiments.
--
-- KEYS  queues, the preferred one first
-- ARGV  1 group  2 worker  3 how many
-- returns {triples {queue, entry, fields}, triples {id, type, content} of experiments}; of an experiment that
--         can't be read here, or whose id can't be told from the order's text, there is none
-- include documents.lua
redis.replicate_commands()
local EXPERIMENTS = 'experiments:'
local claims, experiments, seen = {}, {}, {}

local function note_experiment(order)
  local id = string.match(order, '^[^\\]-"experiment_id":"([^"\\]+)"')
  if not id or seen[id] then return end
  seen[id] = true
  -- Whatever is wrong with it, the orders are handed out by now.
  local can_read, found = pcall(document, EXPERIMENTS .. id)
  if can_read then experiments[#experiments + 1] = {id, found[1], found[2]} end
end

for _, queue in ipairs(KEYS) do
  local free = ARGV[3] - #claims
  if free <= 0 then break end
  local answer = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', free, 'STREAMS', queue, '>')
  for _, entry in ipairs(answer and answer[1][2] or {}) do
    claims[#claims + 1] = {queue, entry[1], entry[2]}
    if entry[2][1] == 'order' then note_experiment(entry[2][2]) end
  end
end
return {claims, experiments}
