-- Keep finished lines of a shard, so that nobody generates them again. Returns 0 if the shard is not the owner's.
-- Lines that are there already (an answer lost on the way) are not counted twice.
--
-- Keys: <p>:shard:<id>/<n>, <p>:lines:<id>/<n>, <p>:leases
-- ARGV: id, shard, epoch, owner, failed, prompt tokens, completion tokens, device ms, wasted ms,
--       line, output, line, output, ...
local id, n = ARGV[1], ARGV[2]
if not holds(id, n, ARGV[3], ARGV[4]) then
  return 0
end
local shard, lines = shard_key(id, n), p .. ':lines:' .. id .. '/' .. n
local added = 0
for i = 10, #ARGV, 2 do
  added = added + redis.call('HSET', lines, ARGV[i], ARGV[i + 1])
end
if added > 0 then
  redis.call('HINCRBY', shard, 'failed', ARGV[5])
  redis.call('HINCRBY', shard, 'prompt_tokens', ARGV[6])
  redis.call('HINCRBY', shard, 'completion_tokens', ARGV[7])
  redis.call('HINCRBY', shard, 'device_ms', ARGV[8])
  redis.call('HINCRBY', shard, 'wasted_ms', ARGV[9])
  redis.call('HSET', shard, 'attempts', 0)
end
return 1
