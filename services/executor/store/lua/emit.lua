-- Report metric events of a run under way.
--
-- KEYS  1 metrics list  2 journal
-- ARGV  1 metrics cap  2 journal cap  3.. events (JSON)
-- include events.lua
redis.replicate_commands()
for i = 3, #ARGV do emit_metric(KEYS[1], KEYS[2], ARGV[i], ARGV[1], ARGV[2]) end
