-- Put right what died half-way: expired leases become due again, and due shards whose hint was lost are
-- published again. A hint counts as lost where the queue holds fewer messages than shards are due and it is
-- older than `patience`. Changing nothing twice, it may run as often as one likes.
-- Returns {model, id/shard, model, id/shard, ...}: the caller publishes these.
--
-- Keys: <p>:leases, <p>:models, <p>:due:<model>, <p>:job:<id>, <p>:shard:<id>/<n> (see register.lua);
--       KEYS[2] .. model: the broker's list of a model's messages
-- ARGV: patience in ms
local p, queue, patience = KEYS[1], KEYS[2], tonumber(ARGV[1])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, ref in ipairs(redis.call('ZRANGEBYSCORE', p .. ':leases', '-inf', now, 'LIMIT', 0, 1000)) do
  local id = string.match(ref, '^(.*)/')
  redis.call('ZREM', p .. ':leases', ref)
  redis.call('HSET', p .. ':shard:' .. ref, 'owner', '')
  redis.call('ZADD', p .. ':due:' .. redis.call('HGET', p .. ':job:' .. id, 'model'), 0, ref)
end
local lost = {}
for _, model in ipairs(redis.call('SMEMBERS', p .. ':models')) do
  local due = p .. ':due:' .. model
  local missing = redis.call('ZCARD', due) - redis.call('LLEN', queue .. model)
  if missing > 0 then
    for _, ref in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now - patience, 'LIMIT', 0, missing)) do
      redis.call('ZADD', due, now, ref)
      table.insert(lost, model)
      table.insert(lost, ref)
    end
  end
end
return lost
