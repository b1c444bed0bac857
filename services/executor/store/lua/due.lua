-- Reads the due times that have come or will soon, earliest first, each with everything that decides about it.
--
-- KEYS  due_times noted_schedules
-- ARGV  within_ms most open_runs_prefix
--   within_ms         a due time counts from so long before it
--   most              how many are read
--   open_runs_prefix  the key of an experiment's open runs, without the experiment
-- returns {due, the first due time (ms) after these, or "", now (microseconds)}; each of `due` is
--         {experiment, due time (ms), the schedule as it was noted, or "", or nil if it can't be read,
--          schedule, experiment, 1 if runs of it are open, digest (see deciding.lua)}
-- include deciding.lua
local limit = tonumber(most)
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + time[2] / 1000 + within_ms
local found = redis.call('ZRANGE', due_times, 0, limit, 'WITHSCORES')
local due, following = {}, ''
for i = 1, #found, 2 do
  local experiment, due_ms = found[i], found[i + 1]
  if #due == limit or tonumber(due_ms) > until_ms then
    following = due_ms
    break
  end
  -- If `noted_schedules` is no hash, due times are fired all the same.
  local noted = redis.pcall('HGET', noted_schedules, experiment)
  if type(noted) == 'table' then noted = false else noted = noted or '' end
  due[#due + 1] = {experiment, due_ms, noted, deciding(experiment, open_runs_prefix .. experiment)}
end
-- Read at the end, so that as little time as possible has passed when the answer comes.
time = redis.call('TIME')
return {due, following, time[1] * 1000000 + time[2]}
