-- Stores an experiment file: the experiment, and its schedule if it has one.
--
-- KEYS  experiment schedule
-- ARGV  file state now schedule_text
--   now            ISO 8601
--   schedule_text  JSON, or "" when the file has no schedule
-- returns {1 when the experiment was there before,
--          1 when a schedule stays that the file does not have}
local kind = redis.call('TYPE', experiment).ok
if kind ~= 'hash' then redis.call('DEL', experiment) end
-- Fields of another shape must not contradict the file.
redis.call('HDEL', experiment, 'tool', 'params', 'execution')
redis.call('HSET', experiment, 'spec', file, 'state', state, 'updated_at', now)
redis.call('HSETNX', experiment, 'created_at', now)
local was_there = kind ~= 'none' and 1 or 0
if schedule_text == '' then return {was_there, redis.call('EXISTS', schedule)} end
redis.call('SET', schedule, schedule_text)
redis.call('PUBLISH', 'fullsend:schedules', schedule_text)
return {was_there, 0}
