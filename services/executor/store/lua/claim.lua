-- Hands orders out to a worker, with what is stored of their experiments; waits for none.
--
-- KEYS  queues[]
--   queues  the preferred one first
-- ARGV  group worker count
-- returns {claims, experiments}, see claims.lua
-- include claims.lua
return {hand_out(queues, group, worker, count)}
