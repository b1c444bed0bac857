-- Included by others.  A key of another type than what is written there, because somebody has made something
-- else of it, has to be found before the first write: what a script has done is not taken back when it fails.
-- The first command on a key finds it as well as TYPE, where that command is needed anyway.

local function fits(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none', found
end

-- An error to return before anything is done, which names the first key that doesn't fit; keys and types in turn.
local function misfit(...)
  local wanted = {...}
  for i = 1, #wanted, 2 do
    local good, found = fits(wanted[i], wanted[i + 1])
    if not good then
      local told = ' is a Redis ' .. found .. '; expected a ' .. wanted[i + 1]
      return redis.error_reply('WRONGTYPE ' .. wanted[i] .. told)
    end
  end
end

-- The same, by what the first command on a key was answered with `redis.pcall`.
local function refused(answer, key, kind)
  if type(answer) == 'table' and answer.err then return misfit(key, kind) or answer end
end

-- Keys that the script does without, by name and in order.
local skipped = {}

-- Whether a key fits, where it is better to do without than to do nothing.
local function usable(key, kind)
  if skipped[key] == nil then
    skipped[key] = not fits(key, kind)
    if skipped[key] then skipped[#skipped + 1] = key end
  end
  return not skipped[key]
end

-- What a command on such a key is answered, or nil.
local function try(key, kind, command, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if usable(key, kind) then error(answer.err) end
end
