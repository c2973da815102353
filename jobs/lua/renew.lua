-- Move a lease's deadline, and note the device time of lines that are not finished yet. Returns false if the shard
-- is no longer the owner's, else what the job was called off for, '' while it is wanted.
--
-- Keys: <p>:job:<id>, <p>:shard:<id>/<n>, <p>:leases
-- ARGV: id, shard, epoch, owner, lease in ms, unkept ms
local id, n = ARGV[1], ARGV[2]
if not holds(id, n, ARGV[3], ARGV[4]) then
  return false
end
redis.call('ZADD', p .. ':leases', milliseconds() + tonumber(ARGV[5]), id .. '/' .. n)
redis.call('HSET', shard_key(id, n), 'unkept_ms', ARGV[6])
return redis.call('HGET', job_key(id), 'outcome')
