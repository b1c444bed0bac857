-- Reads everything that decides about a due time.
-- include documents.lua

-- Returns the documents of the schedule and of the experiment, each {type, content}; 1 if runs of it are open, or 0;
-- and a digest that changes when one of these does.
local function deciding(experiment, open_runs)
  local schedule = {document_at('schedules:' .. experiment)}
  local stored = {document_at('experiments:' .. experiment)}
  local is_open = redis.call('EXISTS', open_runs)
  return schedule, stored, is_open, redis.sha1hex(cmsgpack.pack({schedule, stored, is_open}))
end
