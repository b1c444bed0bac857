-- Reads the due times that have come, earliest first, each with everything that decides about it.
--
-- KEYS  due_times noted_schedules
-- ARGV  most open_runs_prefix
--   most              how many are read
--   open_runs_prefix  the key of an experiment's open runs, without the experiment
-- returns {due, the first due time (ms) after these, or "", now (microseconds)}; each of `due` is
--         {experiment, due time (ms), the schedule as it was noted, or "", or nil if it can't be read,
--          schedule, experiment, 1 if runs of it are open}; both documents are {type, content}
-- include documents.lua
local limit = tonumber(most)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local found = redis.call('ZRANGE', due_times, 0, limit, 'WITHSCORES')
local due, following = {}, ''
for i = 1, #found, 2 do
  local experiment, due_ms = found[i], found[i + 1]
  if #due == limit or tonumber(due_ms) * 1000 > now then
    following = due_ms
    break
  end
  -- If `noted_schedules` is no hash, due times are fired all the same.
  local noted = redis.pcall('HGET', noted_schedules, experiment)
  if type(noted) == 'table' then noted = false else noted = noted or '' end
  due[#due + 1] = {
    experiment, due_ms, noted,
    {document('schedules:' .. experiment, redis.call)}, {document('experiments:' .. experiment, redis.call)},
    redis.call('EXISTS', open_runs_prefix .. experiment),
  }
end
return {due, following, now}
