-- Included by others, after documents.lua.  All that decides what becomes of an experiment's slot, as it is written now.

-- The documents of its schedule and of the experiment, and a mark: as long as that is the same, so are they.
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

-- returns {experiment, slot (ms), the schedule as it was noted, or "", or nil if that can't be told,
--         {mark, schedule, experiment, 1 if runs of it are open}}, both documents being {type, content}
local function slot_found(experiment, slot, plans, open)
  local found, mark = decisive(experiment)
  -- Where the plans are no hash, slots are fired all the same.
  local noted = redis.pcall('HGET', plans, experiment)
  if type(noted) == 'table' then noted = false else noted = noted or '' end
  return {experiment, slot, noted, {mark, found[1], found[2], redis.call('EXISTS', open)}}
end
