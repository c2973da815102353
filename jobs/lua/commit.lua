-- Count a shard whose part is in the store, and forget its checkpoints. Whoever counts the last shard gets the
-- job to finalize. Returns 0 if the shard is not the owner's, 1 if it was counted, 2 if that was the last one,
-- 3 if it was counted before. The owner whose answer was lost on the way gets the same one again.
--
-- Keys: <p>:job:<id>, <p>:open:<id>, <p>:shard:<id>/<n>, <p>:lines:<id>/<n>, <p>:leases, <p>:claim:<owner>,
--       <p>:finalizing
-- ARGV: id, shard, epoch, owner, succeeded, failed, prompt tokens, completion tokens, device ms, wasted ms,
--       finalizer's lease in ms
local id, n, owner = ARGV[1], ARGV[2], ARGV[4]
local job, shard = job_key(id), shard_key(id, n)
if redis.call('EXISTS', shard) == 0 then
  local about = redis.call('HMGET', job, 'next', 'finalizer')
  if not about[1] or tonumber(n) >= tonumber(about[1]) then
    return 0
  end
  return about[2] == owner and redis.call('ZSCORE', p .. ':finalizing', id) and 2 or 3
end
if not holds(id, n, ARGV[3], owner) then
  return 0
end
redis.call('DEL', shard, p .. ':lines:' .. id .. '/' .. n, p .. ':claim:' .. owner)
redis.call('ZREM', p .. ':leases', id .. '/' .. n)
redis.call('SREM', p .. ':open:' .. id, n)
redis.call('HINCRBY', job, 'succeeded', ARGV[5])
redis.call('HINCRBY', job, 'failed', ARGV[6])
redis.call('HINCRBY', job, 'prompt_tokens', ARGV[7])
redis.call('HINCRBY', job, 'completion_tokens', ARGV[8])
redis.call('HINCRBY', job, 'device_ms', ARGV[9])
redis.call('HINCRBY', job, 'wasted_ms', ARGV[10])
redis.call('HDEL', job, 'problem')
local committed = redis.call('HINCRBY', job, 'committed', 1)
local about = redis.call('HMGET', job, 'shards', 'outcome', 'model')
local called_off = about[2] ~= '' and redis.call('SCARD', p .. ':open:' .. id) == 0
if committed < tonumber(about[1]) and not called_off then
  return 1
end
redis.call('HSET', job, 'finalizer', owner)
await_manifest(about[3], id, milliseconds() + tonumber(ARGV[11]))
return 2
