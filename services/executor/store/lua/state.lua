-- Included by others.  Moves an experiment's state, whichever shape it is stored in.
--
-- `from` is the only state that is left, or "" for any but archived; `to` is "" to leave it alone.  A string is
-- replaced as a whole and only if it still is `expected`; `replacement` is "" when its
-- state is to stay, and `to` is "archived" when it says that it is.  `expected` is "" for a hash.
-- Nothing is created: an experiment that is gone stays gone.
--
-- returns "moved" | "kept" | "archived" | "conflict"; on "conflict" nothing was done
local function move_state(key, from, to, expected, replacement)
  if to == '' then return 'kept' end
  if expected ~= '' then
    local document = redis.pcall('GET', key)
    if not document then return 'kept' end
    if document ~= expected then return 'conflict' end -- also where it is none any more
    if to == 'archived' then return 'archived' end
    if replacement == '' then return 'kept' end
    redis.call('SET', key, replacement, 'KEEPTTL')
    return 'moved'
  end
  local state = redis.pcall('HGET', key, 'state')
  if type(state) ~= 'string' then -- it has none, or the key is no hash
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
