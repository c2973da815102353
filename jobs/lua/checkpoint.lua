-- Keep finished lines of a shard, so that nobody generates them again. Returns 0 if the epoch is not the shard's.
--
-- Keys: <p>:shard:<id>/<n>, <p>:lines:<id>/<n>, <p>:leases (see register.lua)
-- ARGV: id, shard, epoch, line, output, line, output, ...
local p, ref = KEYS[1], ARGV[1] .. '/' .. ARGV[2]
if redis.call('HGET', p .. ':shard:' .. ref, 'epoch') ~= ARGV[3] or not redis.call('ZSCORE', p .. ':leases', ref) then
  return 0
end
for i = 4, #ARGV, 2 do
  redis.call('HSET', p .. ':lines:' .. ref, ARGV[i], ARGV[i + 1])
end
return 1
