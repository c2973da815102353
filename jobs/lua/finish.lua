-- Give a job its final state, once its manifest is written. Returns 0 if the job is not being finalized.
--
-- Keys: <p>:job:<id>, <p>:open:<id>, <p>:finalizing
-- ARGV: id, state, seconds to remember it
local id = ARGV[1]
if redis.call('ZREM', p .. ':finalizing', id) == 0 then
  return 0
end
redis.call('HSET', job_key(id), 'state', ARGV[2], 'finished_ms', milliseconds())
redis.call('EXPIRE', job_key(id), ARGV[3])
redis.call('DEL', p .. ':open:' .. id)
return 1
