-- Moves the state of an experiment, in whichever shape the experiment is stored.

-- Arguments:
--   from         the only state that is left, or "" for any but archived
--   to           the new state, or "" to change nothing
--   expected     of a string: its text as it was read; "" for a hash
--   replacement  of a string: its new text, or "" when its state stays; `to` is then "archived" if it says so
-- A string is replaced as a whole, and only while it is `expected`. An experiment that is gone stays gone.
-- Returns "moved" | "kept" | "archived" | "conflict"; after "conflict" nothing was done.
local function move_state(key, from, to, expected, replacement)
  if to == '' then return 'kept' end
  if expected ~= '' then
    local document = redis.pcall('GET', key)
    if not document then return 'kept' end
    if document ~= expected then return 'conflict' end -- also when the key is no string any more
    if to == 'archived' then return 'archived' end
    if replacement == '' then return 'kept' end
    redis.call('SET', key, replacement, 'KEEPTTL')
    return 'moved'
  end
  local state = redis.pcall('HGET', key, 'state')
  if type(state) ~= 'string' then -- there is no state, or the key is no hash
    local kind = redis.call('TYPE', key).ok
    if kind ~= 'hash' then return kind == 'string' and 'conflict' or 'kept' end
    if state then error(state.err) end
    state = 'ready'
  end
  if state == 'archived' then return 'archived' end
  if from ~= '' and state ~= from then return 'kept' end
  if state ~= to then redis.call('HSET', key, 'state', to) end
  return 'moved'
end
