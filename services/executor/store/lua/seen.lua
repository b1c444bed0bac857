-- Included by others, after documents.lua.  A slot with all that decides what becomes of it, as it is written now, and
-- a mark: as long as that is the same, so is what is written.
--
-- returns {experiment, slot (ms), the schedule as it was noted, or "", or nil if that can't be told,
--         {mark, schedule, experiment, 1 if runs of it are open}}, both documents being {type, content}; and the mark
local function marked(found)
  local content = found[2]
  if type(content) == 'table' then
    local parts = {}
    for i, part in ipairs(content) do parts[i] = #part .. ':' .. part end
    content = table.concat(parts)
  end
  return redis.sha1hex(found[1] .. ' ' .. content)
end

local function slot_found(experiment, slot, plans, open)
  local schedule = {document('schedules:' .. experiment, redis.call)}
  local definition = {document('experiments:' .. experiment, redis.call)}
  local mark = marked(schedule) .. marked(definition)
  -- Where the plans are no hash, slots are fired all the same.
  local noted = redis.pcall('HGET', plans, experiment)
  if type(noted) == 'table' then noted = false else noted = noted or '' end
  return {experiment, slot, noted, {mark, schedule, definition, redis.call('EXISTS', open)}}, mark
end
