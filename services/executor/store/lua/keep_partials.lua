-- Keeps items that a tool has reported, for later attempts of the run and for its end.
--
-- KEYS  partials
-- ARGV  most_bytes kept_ms entries[]
--   most_bytes  further entries are dropped
-- The first item of the list is the size of all others.
-- include types.lua
local wrong = misfit(partials, 'list')
if wrong then return wrong end
local size_bytes = tonumber(redis.call('LINDEX', partials, 0) or redis.call('RPUSH', partials, '0') and 0)
-- Sent again, they are the last; each is unique.
if entries[1] and redis.call('LPOS', partials, entries[1], 'RANK', -1, 'MAXLEN', #entries) then return end
for _, entry in ipairs(entries) do
  if size_bytes + #entry > tonumber(most_bytes) then break end
  redis.call('RPUSH', partials, entry)
  size_bytes = size_bytes + #entry
end
redis.call('LSET', partials, 0, size_bytes)
redis.call('PEXPIRE', partials, kept_ms)
