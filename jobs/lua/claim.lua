-- Take a shard under a lease and a new epoch. A claim repeated by the same owner returns the same epoch, so
-- that an answer lost on the way can be asked for again.
-- Returns {'claimed', epoch, attempts, outcome}, or {why not}: unknown, unopened, committed, leased.
--
-- Keys: <p>:job:<id>, <p>:shard:<id>/<n>, <p>:leases, <p>:due:<model> (see register.lua)
-- ARGV: id, shard, owner, lease in ms
local p, id, n, owner, lease = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local ref = id .. '/' .. n
local job, shard = p .. ':job:' .. id, p .. ':shard:' .. ref
local about = redis.call('HMGET', job, 'next', 'model', 'outcome', 'state')
if not about[1] then
  return {'unknown'}
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local held = redis.call('HMGET', shard, 'epoch', 'owner', 'attempts')
if not held[1] then
  return {tonumber(n) < tonumber(about[1]) and 'committed' or 'unopened'}
end
local deadline = redis.call('ZSCORE', p .. ':leases', ref)
if deadline and held[2] == owner then
  return {'claimed', tonumber(held[1]), tonumber(held[3]), about[3]}
end
if deadline and tonumber(deadline) > now then
  return {'leased'}
end
local epoch = redis.call('HINCRBY', shard, 'epoch', 1)
local attempts = redis.call('HINCRBY', shard, 'attempts', 1)
redis.call('HSET', shard, 'owner', owner)
redis.call('ZADD', p .. ':leases', now + lease, ref)
redis.call('ZREM', p .. ':due:' .. about[2], ref)
if about[4] == 'queued' then
  redis.call('HSET', job, 'state', 'in_progress', 'started_ms', now)
end
return {'claimed', epoch, attempts, about[3]}
