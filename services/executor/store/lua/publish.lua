-- An experiment file is published: the experiment, and its schedule if it has one.
--
-- KEYS  1 experiment  2 schedule
-- ARGV  1 the file  2 state  3 now (ISO 8601)  4 schedule (JSON), or "" when the file has none
-- returns {1 when the experiment was there before,
--          1 when a schedule stays that the file doesn't have}
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' then redis.call('DEL', KEYS[1]) end
-- What another shape said must not contradict the file.
redis.call('HDEL', KEYS[1], 'tool', 'params', 'execution')
redis.call('HSET', KEYS[1], 'spec', ARGV[1], 'state', ARGV[2], 'updated_at', ARGV[3])
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[3])
local was_there = kind ~= 'none' and 1 or 0
if ARGV[4] == '' then return {was_there, redis.call('EXISTS', KEYS[2])} end
redis.call('SET', KEYS[2], ARGV[4])
redis.call('PUBLISH', 'fullsend:schedules', ARGV[4])
return {was_there, 0}
