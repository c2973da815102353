-- Give a job its final state, once its manifest is written. Returns 0 if the job is not being finalized.
--
-- Keys: <p>:job:<id>, <p>:open:<id>, <p>:finalizing (see register.lua)
-- ARGV: id, state
local p, id = KEYS[1], ARGV[1]
if redis.call('ZREM', p .. ':finalizing', id) == 0 then
  return 0
end
local t = redis.call('TIME')
redis.call('HSET', p .. ':job:' .. id, 'state', ARGV[2], 'finished_ms', t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('DEL', p .. ':open:' .. id)
return 1
