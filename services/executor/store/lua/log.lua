-- Keep lines that a run has printed, each batch once.
--
-- KEYS  1 log  2 record
-- ARGV  1 log cap  2 ms the log is kept  3 mark of this batch
--       4.. for each line: how many names and values it has, then these
-- include types.lua
redis.replicate_commands()
local logged = redis.pcall('HGET', KEYS[2], 'logged')
local wrong = refused(logged, KEYS[2], 'hash')
if wrong then return wrong end
if logged == ARGV[3] then return end
local first = 4
while first <= #ARGV do
  local last = first + ARGV[first]
  local entry = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, first + 1, last))
  wrong = refused(entry, KEYS[1], 'stream')
  if wrong then return wrong end
  first = last + 1
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HSET', KEYS[2], 'logged', ARGV[3]) end
