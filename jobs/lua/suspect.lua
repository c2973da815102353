-- Write down which lines of a shard are tried apart from the others, so that whoever follows a death knows among
-- which it has to look, and how often they were tried; '' when there are none. Attempts count anew with others.
-- Returns 0 if the shard is not the owner's.
--
-- Keys: <p>:shard:<id>/<n>, <p>:leases
-- ARGV: id, shard, epoch, owner, lines
if not holds(ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then
  return 0
end
local shard = shard_key(ARGV[1], ARGV[2])
if redis.call('HGET', shard, 'suspects') ~= ARGV[5] then
  redis.call('HSET', shard, 'suspects', ARGV[5], 'trials', 0, 'attempts', 0)
end
redis.call('HINCRBY', shard, 'trials', 1)
return 1
