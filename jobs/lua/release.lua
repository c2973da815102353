-- Hand a shard back: it is due at once, and the attempt does not count where `counts` is 0.
-- Returns 0 if the epoch is not the shard's.
--
-- Keys: <p>:job:<id>, <p>:shard:<id>/<n>, <p>:leases, <p>:due:<model> (see register.lua)
-- ARGV: id, shard, epoch, counts
local p, id, ref = KEYS[1], ARGV[1], ARGV[1] .. '/' .. ARGV[2]
local shard = p .. ':shard:' .. ref
if redis.call('HGET', shard, 'epoch') ~= ARGV[3] or redis.call('ZREM', p .. ':leases', ref) == 0 then
  return 0
end
redis.call('HSET', shard, 'owner', '')
if ARGV[4] == '0' then
  redis.call('HINCRBY', shard, 'attempts', -1)
end
redis.call('ZADD', p .. ':due:' .. redis.call('HGET', p .. ':job:' .. id, 'model'), 0, ref)
return 1
