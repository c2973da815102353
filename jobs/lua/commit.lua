-- Count a shard whose part is in the store, and forget its checkpoints. Whoever counts the last shard gets the
-- job to finalize. Returns {result, shards committed}: result 0 if the epoch is not the shard's, 1 if counted,
-- 2 if that was the last one, 3 if the shard was counted before (an answer lost on the way).
--
-- Keys: <p>:job:<id>, <p>:open:<id>, <p>:shard:<id>/<n>, <p>:lines:<id>/<n>, <p>:leases, <p>:finalizing
--       (see register.lua)
-- ARGV: id, shard, epoch, succeeded, failed, prompt tokens, completion tokens, device ms, finalizer's lease in ms
local p, id, n = KEYS[1], ARGV[1], ARGV[2]
local ref = id .. '/' .. n
local job, shard = p .. ':job:' .. id, p .. ':shard:' .. ref
local epoch = redis.call('HGET', shard, 'epoch')
if not epoch then
  local next = redis.call('HGET', job, 'next')
  return {next and tonumber(n) < tonumber(next) and 3 or 0, tonumber(redis.call('HGET', job, 'committed') or 0)}
end
if epoch ~= ARGV[3] or not redis.call('ZSCORE', p .. ':leases', ref) then
  return {0, 0}
end
redis.call('DEL', shard, p .. ':lines:' .. ref)
redis.call('ZREM', p .. ':leases', ref)
redis.call('SREM', p .. ':open:' .. id, n)
redis.call('HINCRBY', job, 'succeeded', ARGV[4])
redis.call('HINCRBY', job, 'failed', ARGV[5])
redis.call('HINCRBY', job, 'prompt_tokens', ARGV[6])
redis.call('HINCRBY', job, 'completion_tokens', ARGV[7])
redis.call('HINCRBY', job, 'device_ms', ARGV[8])
redis.call('HDEL', job, 'problem')
local committed = redis.call('HINCRBY', job, 'committed', 1)
local about = redis.call('HMGET', job, 'shards', 'outcome')
local called_off = about[2] ~= '' and redis.call('SCARD', p .. ':open:' .. id) == 0
if committed < tonumber(about[1]) and not called_off then
  return {1, committed}
end
local t = redis.call('TIME')
redis.call('HSET', job, 'state', 'finalizing')
redis.call('ZADD', p .. ':finalizing', t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[9]), id)
return {2, committed}
