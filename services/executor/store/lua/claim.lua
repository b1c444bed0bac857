-- Hands orders out to a worker, without waiting for any, and begins their runs.
--
-- KEYS  queues[]
-- ARGV  worker room started_at started metrics_cap journal_cap metrics_ms held[] missing[] failed[]
--   held     queues and entries in turn that the worker holds already
--   missing  tools that the worker has looked for and doesn't have; runs that waited before all live workers had
--            looked for their tool in vain begin here, to be reported
--   failed   tools that the worker can't prepare; where no other worker can begin one, its runs begin here as well
-- returns what was handed out (see claims.lua, which has the other arguments)
-- include claims.lua
local mute = silenced('fullsend:metrics')
if mute then return mute end
-- Refused when there is no memory left, and does nothing otherwise: XREADGROUP is never refused for that, nor is what
-- follows a first write.
redis.call('SETRANGE', 'fullsend:executor:memory', 0, '')
for _, tool in ipairs(missing) do
  searched[tool] = true
  local looked = missing_until(tool)
  absent[tool] = looked and string.format('%.0f', looked)
end
for _, tool in ipairs(failed) do
  local other = other_with(tool)
  if other then ring_for(other) else absent[tool] = '+' end
end
for i = 1, #held, 2 do
  local queue, entry = held[i], held[i + 1]
  if #redis.call('XPENDING', queue, GROUP, entry, entry, 1, worker) > 0 then
    local stored = redis.call('XRANGE', queue, entry, entry)[1]
    if stored then begin(queue, entry, stored[2]) else redis.call('XACK', queue, GROUP, entry) end
  end
end
if hand_out(queues) then ring() end -- let another worker look
return handed_out()
