-- What is at a key, whichever type it has, in one trip.
--
-- KEYS  any number
-- returns a pair for each key: {type, content}: fields and values of a hash, a string, else ""
-- include documents.lua
local answer = {}
for i, key in ipairs(KEYS) do answer[i] = {document(key, redis.call)} end
return answer
