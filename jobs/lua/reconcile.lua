-- Put right what died half-way: expired leases become due again, jobs past their deadline are called off, and due
-- shards whose hint was lost are published again. A hint counts as lost where the queue holds fewer messages than
-- shards are due and it is older than `patience`. One worker does it in each `turn`; changing nothing twice, it may
-- run as often as one likes.
-- Returns {model, id/shard, model, id/shard, ...}: the caller publishes these.
--
-- Keys: <p>:reconciler, <p>:leases, <p>:deadlines, <p>:models, <p>:due:<model>, <p>:waiting:<id>, <p>:job:<id>,
--       <p>:shard:<id>/<n>; KEYS[2] .. model: the broker's list of a model's messages
-- ARGV: patience in ms, turn in ms, the longest lease of a shard and of a manifest in ms
local queue, patience, turn = KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2])
local lease, finalizing = tonumber(ARGV[3]), tonumber(ARGV[4])
local now = milliseconds()
local since = now - tonumber(redis.call('GET', p .. ':reconciler') or 0)
if since >= 0 and since < turn then
  return {}
end
redis.call('SET', p .. ':reconciler', now)

-- A time that lies further ahead than anybody puts one comes from a clock that was set back since.
local function not_beyond(key, latest)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, latest + 1, '+inf', 'LIMIT', 0, 1000)) do
    redis.call('ZADD', key, latest, member)
  end
end

not_beyond(p .. ':leases', now + lease)
not_beyond(p .. ':finalizing', now + finalizing)
for _, ref in ipairs(redis.call('ZRANGEBYSCORE', p .. ':leases', '-inf', now, 'LIMIT', 0, 1000)) do
  expire_lease(string.match(ref, '^(.*)/(.*)$'))
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. ':deadlines', '-inf', now)) do
  call_off(id, 'expired')
end
local lost = {}
for _, model in ipairs(redis.call('SMEMBERS', p .. ':models')) do
  local due = p .. ':due:' .. model
  not_beyond(due, now)
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
