-- Say what is wrong with a key.
--
-- KEYS  1 journal
-- ARGV  1 result (JSON)  2 journal cap
-- include events.lua
redis.replicate_commands()
emit_result(KEYS[1], ARGV[1], ARGV[2])
