-- What neighbours wrote at keys, and experiments beside what a worker compiled of them: see `compiled.py`.  What was
-- compiled counts as long as the document is the same but for `state`.  A script that needs an experiment which isn't
-- compiled changes nothing and returns {"uncompiled", {id, type, content, digest}}.

-- The type of a key and its content, which is fields and values in turn, or a text.  Of a document over this bound the
-- type is "oversize", and the content says so.
local LARGEST_BYTES = 1000000 -- EXPERIMENT_MAX_BYTES, see `Scripts`
local MOST_FIELDS = 1000

local function oversize(size)
  return 'oversize', size .. '; at most ' .. LARGEST_BYTES .. ' bytes in ' .. MOST_FIELDS .. ' fields are read'
end

local function hash_at(key)
  if redis.call('HLEN', key) > MOST_FIELDS then return oversize('more than ' .. MOST_FIELDS .. ' fields') end
  local names, size = redis.call('HKEYS', key), 0
  for _, name in ipairs(names) do size = size + redis.call('HSTRLEN', key, name) end
  if size > LARGEST_BYTES then return oversize(size .. ' bytes') end
  table.sort(names)
  local values, content = redis.call('HMGET', key, unpack(names)), {}
  for i, name in ipairs(names) do
    content[2 * i - 1], content[2 * i] = name, values[i]
  end
  return 'hash', content
end

local function document_at(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then return hash_at(key) end
  if kind ~= 'string' then return kind, '' end
  local size = redis.call('STRLEN', key)
  if size > LARGEST_BYTES then return oversize(size .. ' bytes') end
  return kind, redis.call('GET', key)
end

local EXPERIMENT, COMPILED = 'experiments:', 'fullsend:executor:compiled:2:'
local STATES = {
  draft = true, ready = true, running = true, run = true, completed = true, failed = true, paused = true, archived = true,
}
local looked_up = {}

-- The digest of a document without `state`, and the state that a hash has of its own.
local function digest_of(kind, content)
  if kind ~= 'hash' then return redis.sha1hex(kind .. ':' .. content) end
  local parts, state = {}, nil
  for i = 1, #content, 2 do
    local name, value = content[i], content[i + 1]
    if name == 'state' then
      state = value ~= '' and value or nil
    else
      parts[#parts + 1] = #name .. ':' .. name .. #value .. ':' .. value
    end
  end
  return redis.sha1hex('hash:' .. table.concat(parts)), state
end

-- The state in a text that the executor has written, or nil for any other text.
local function state_between(text, before, after)
  if not before or #text <= #before + #after then return nil end
  local state = string.sub(text, #before + 1, -#after - 1)
  local is_ours = STATES[state] and string.sub(text, 1, #before) == before and string.sub(text, -#after) == after
  return is_ours and state or nil
end

-- An experiment, looked up once in a script.
--
-- returns {key, kind, content, digest, state, tool, limit, priority, body, before, after,
--          is_known (there is nothing, or it is compiled), is_refused (it can't be read)}
local function experiment(id)
  if looked_up[id] then return looked_up[id] end
  local found = {id = id, key = EXPERIMENT .. id}
  looked_up[id] = found
  found.kind, found.content = document_at(found.key)
  if found.kind == 'none' then
    found.is_known, found.tool, found.limit, found.body = true, '', '', ''
    return found
  end
  local compiled = redis.call('HMGET', COMPILED .. id,
    'digest', 'state', 'tool', 'limit', 'priority', 'body', 'before', 'after')
  local written = found.kind == 'string' and state_between(found.content, compiled[7], compiled[8])
  if written then
    found.digest, found.state = compiled[1], written
  else
    found.digest, found.state = digest_of(found.kind, found.content)
  end
  found.is_known = found.digest == compiled[1]
  if found.is_known then
    found.state = found.state or compiled[2]
    found.tool, found.limit, found.priority, found.body = compiled[3], compiled[4], compiled[5], compiled[6]
    found.before, found.after = compiled[7], compiled[8]
    found.is_refused = found.tool == ''
  end
  return found
end

-- Move an experiment's state; with `from`, only from that state. It stays if it is archived or paused, which only
-- others undo, or a word that isn't known. Of an experiment that can't be read, it is moved if its place can be told.
-- Nothing is created: an experiment that is gone stays gone.
local STAYS = {archived = true, paused = true}
local function move_state(found, from, to)
  if not found.is_known or not STATES[found.state] or STAYS[found.state] or found.state == to then return end
  if from and found.state ~= from then return end
  if found.kind ~= 'hash' and not (found.kind == 'string' and found.before) then return end
  if found.kind == 'hash' then
    redis.call('HSET', found.key, 'state', to)
  else
    redis.call('SET', found.key, found.before .. to .. found.after, 'KEEPTTL')
  end
  found.state = to
end

-- The same from `running`, when a run has ended.  False when a text was written anew and must be compiled first.
local function end_running(id, to)
  if to == '' then return true end
  local key = EXPERIMENT .. id
  local state = redis.pcall('HGET', key, 'state')
  if type(state) == 'string' then
    if state == 'running' then redis.call('HSET', key, 'state', to) end
    return true
  end
  if not state then return true end -- there is no experiment, or it says nothing about its state
  if not string.find(state.err, 'WRONGTYPE', 1, true) then error(state.err) end
  local found = experiment(id)
  if found.kind == 'string' and not found.is_known then return false end
  if found.kind == 'string' then move_state(found, 'running', to) end
  return true
end

-- What a script returns that needs the experiment compiled before it can go on.
local function uncompiled(id)
  local found = experiment(id)
  return {'uncompiled', {id, found.kind, found.content, found.digest}}
end
