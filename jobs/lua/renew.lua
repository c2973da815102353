-- Move a lease's deadline. Returns 0 if the epoch is no longer the shard's, 2 if the job was called off, else 1.
--
-- Keys: <p>:job:<id>, <p>:shard:<id>/<n>, <p>:leases (see register.lua)
-- ARGV: id, shard, epoch, lease in ms
local p, id, ref = KEYS[1], ARGV[1], ARGV[1] .. '/' .. ARGV[2]
local leases = p .. ':leases'
if redis.call('HGET', p .. ':shard:' .. ref, 'epoch') ~= ARGV[3] or not redis.call('ZSCORE', leases, ref) then
  return 0
end
local t = redis.call('TIME')
redis.call('ZADD', leases, t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[4]), ref)
return redis.call('HGET', p .. ':job:' .. id, 'outcome') == '' and 1 or 2
