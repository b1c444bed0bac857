-- Checks the types of keys before the first write.
--
-- Somebody may have made another type of a key. Redis does not undo what a script did before it failed, so
-- scripts look at the types first: with TYPE, or by the error of the first command that they need anyway.

local function fits(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none', found
end

-- An error reply that names the first key of the wrong type, or nil; takes keys and their types in turn.
local function misfit(...)
  local wanted = {...}
  for i = 1, #wanted, 2 do
    local good, found = fits(wanted[i], wanted[i + 1])
    if not good then
      local message = ' is a Redis ' .. found .. '; expected a ' .. wanted[i + 1]
      return redis.error_reply('WRONGTYPE ' .. wanted[i] .. message)
    end
  end
end

-- The same, for the answer that `redis.pcall` got to the first command on a key.
local function refused(answer, key, kind)
  if type(answer) == 'table' and answer.err then return misfit(key, kind) or answer end
end

-- Keys of the wrong type that the script did without: by name and in order.
local skipped = {}

-- Whether a key has the right type. For keys without which the script can do its work.
local function usable(key, kind)
  if skipped[key] == nil then
    skipped[key] = not fits(key, kind)
    if skipped[key] then skipped[#skipped + 1] = key end
  end
  return not skipped[key]
end

-- The answer to a command on such a key, or nil if the key has the wrong type.
local function try(key, kind, command, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if usable(key, kind) then error(answer.err) end
end
