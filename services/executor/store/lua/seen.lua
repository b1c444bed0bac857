-- Reads everything that decides what becomes of an experiment's slot.
-- include documents.lua

-- Returns the documents of the schedule and of the experiment, and a mark that changes when one of them does.
local function decisive(experiment)
  local found, texts = {}, {}
  found[1] = {document('schedules:' .. experiment, redis.call)}
  found[2] = {document('experiments:' .. experiment, redis.call)}
  for i, one in ipairs(found) do
    local content = one[2]
    if type(content) == 'table' then
      local parts = {}
      for j, part in ipairs(content) do parts[j] = #part .. ':' .. part end
      content = table.concat(parts)
    end
    texts[i] = one[1] .. #content .. ':' .. content
  end
  return found, redis.sha1hex(table.concat(texts))
end

-- Returns {experiment, slot (ms), the schedule as it was noted, or "", or nil if it can't be read,
--          {mark, schedule, experiment, 1 if runs of it are open}}; both documents are {type, content}.
local function slot_found(experiment, slot, plans, open_runs)
  local found, mark = decisive(experiment)
  -- If `plans` is no hash, slots are fired all the same.
  local noted = redis.pcall('HGET', plans, experiment)
  if type(noted) == 'table' then noted = false else noted = noted or '' end
  return {experiment, slot, noted, {mark, found[1], found[2], redis.call('EXISTS', open_runs)}}
end
