-- Reads keys of any type, in one round trip.
--
-- KEYS  names[]
-- returns {type, content} for each key: fields and values of a hash, the text of a string, else ""
-- include documents.lua
local answer = {}
for i, name in ipairs(names) do answer[i] = {document_at(name)} end
return answer
