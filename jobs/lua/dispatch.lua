-- Open shards until `backlog` of the model's wait in its queue: job by job, in proportion to their weights.
-- Returns {id, shard, id, shard, ...}: the caller publishes these.
--
-- Keys: <p>:active:<model>, <p>:due:<model>, <p>:job:<id>, <p>:open:<id>, <p>:shard:<id>/<n> (see register.lua)
-- ARGV: model, backlog
local p, model, backlog = KEYS[1], ARGV[1], tonumber(ARGV[2])
local active, due = p .. ':active:' .. model, p .. ':due:' .. model
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local opened = {}
local room = backlog - redis.call('ZCARD', due)
while room > 0 do
  local id = redis.call('ZRANGE', active, 0, 0)[1]
  if not id then
    break
  end
  local job = p .. ':job:' .. id
  local fields = redis.call('HMGET', job, 'next', 'shards', 'weight')
  local n, shards, weight = tonumber(fields[1]), tonumber(fields[2]), tonumber(fields[3])
  redis.call('HSET', p .. ':shard:' .. id .. '/' .. n, 'epoch', 0, 'attempts', 0, 'owner', '')
  redis.call('SADD', p .. ':open:' .. id, n)
  redis.call('ZADD', due, now, id .. '/' .. n)
  redis.call('HSET', job, 'next', n + 1)
  if n + 1 >= shards then
    redis.call('ZREM', active, id)
  else
    redis.call('ZINCRBY', active, 1 / weight, id)
  end
  table.insert(opened, id)
  table.insert(opened, n)
  room = room - 1
end
return opened
