-- Hand a shard back: it is due at once, and the attempt does not count where `counts` is 0. What its unfinished
-- lines cost is lost. Returns 0 if the shard is not the owner's.
--
-- Keys: <p>:job:<id>, <p>:shard:<id>/<n>, <p>:leases, <p>:waiting:<id>, <p>:due:<model>, <p>:claim:<owner>
-- ARGV: id, shard, epoch, owner, counts, unkept ms
local id, n = ARGV[1], ARGV[2]
if not holds(id, n, ARGV[3], ARGV[4]) then
  return 0
end
local shard = shard_key(id, n)
if ARGV[5] == '0' and tonumber(redis.call('HGET', shard, 'attempts')) > 0 then
  redis.call('HINCRBY', shard, 'attempts', -1)
end
redis.call('HSET', shard, 'unkept_ms', ARGV[6])
redis.call('DEL', p .. ':claim:' .. ARGV[4])
expire_lease(id, n)
return 1
