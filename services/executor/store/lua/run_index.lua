-- The index of runs: sorted sets of run ids by when they were queued (ms), for `history.py`.
--
-- A run joins the sets of all runs and of its experiment when it begins, and that of its status when it ends.
-- Runs leave them when their records have expired: `History.tidy`.
-- include types.lua
local ALL_RUNS, RUNS_OF, RUNS_WITH =
  'fullsend:executor:runs', 'fullsend:executor:runs_of:', 'fullsend:executor:runs_'

local function index_run(run, id, timestamp)
  local ms = string.match(timestamp, '^%d+')
  try(ALL_RUNS, 'zset', 'ZADD', ms, run)
  try(RUNS_OF .. id, 'zset', 'ZADD', ms, run)
end

-- `fields` are those of the record, names and values in turn.
local function index_end(run, timestamp, fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'status' then
      return try(RUNS_WITH .. fields[i + 1], 'zset', 'ZADD', string.match(timestamp, '^%d+'), run)
    end
  end
end
