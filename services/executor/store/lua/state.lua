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
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' then return 'kept' end
  if (kind == 'string') ~= (expected ~= '') then return 'conflict' end
  if kind == 'string' then
    if redis.call('GET', key) ~= expected then return 'conflict' end
    if to == 'archived' then return 'archived' end
    if replacement == '' then return 'kept' end
    redis.call('SET', key, replacement, 'KEEPTTL')
    return 'moved'
  end
  if kind ~= 'hash' then return 'kept' end
  local state = redis.call('HGET', key, 'state') or 'ready'
  if state == 'archived' then return 'archived' end
  if from ~= '' and state ~= from then return 'kept' end
  redis.call('HSET', key, 'state', to)
  return 'moved'
end
