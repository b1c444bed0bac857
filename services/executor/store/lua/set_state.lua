-- Sets the state of an experiment, as somebody wishes, whatever it was before.
--
-- ARGV  experiment_id state
-- returns "set" | "none" (there is no such experiment) | "refused" (it can't be read);
--         {"uncompiled", document}: see documents.lua
-- include documents.lua
local found = experiment(experiment_id)
if found.kind == 'none' then return 'none' end
if not found.is_known then return uncompiled(experiment_id) end
if found.is_refused then return 'refused' end
if found.kind == 'hash' then
  redis.call('HSET', found.key, 'state', state)
else
  redis.call('SET', found.key, found.before .. state .. found.after, 'KEEPTTL')
end
return 'set'
