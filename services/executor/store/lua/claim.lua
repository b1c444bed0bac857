-- A worker takes orders, without waiting for any, and is told what is stored of their experiments.
--
-- KEYS  queues, the preferred one first
-- ARGV  1 group  2 worker  3 how many
-- returns {claims, experiments}, see claims.lua
-- include documents.lua
-- include claims.lua
redis.replicate_commands()
return {hand_out(KEYS, ARGV[1], ARGV[2], ARGV[3])}
