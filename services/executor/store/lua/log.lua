-- Keeps lines that a run printed, each batch once.
--
-- KEYS  log record
-- ARGV  log_cap kept_ms batch lengths[] parts[]
--   batch    identifies this batch
--   lengths  for each line: how many of the parts are its names and values
-- include types.lua
local logged = redis.pcall('HGET', record, 'logged')
local wrong = refused(logged, record, 'hash')
if wrong then return wrong end
if logged == batch then return end
local first = 1
for _, length in ipairs(lengths) do
  local last = first + length - 1
  local entry = redis.pcall('XADD', log, 'MAXLEN', '~', log_cap, '*', unpack(parts, first, last))
  wrong = refused(entry, log, 'stream')
  if wrong then return wrong end
  first = last + 1
end
redis.call('PEXPIRE', log, kept_ms)
if redis.call('EXISTS', record) == 1 then redis.call('HSET', record, 'logged', batch) end
