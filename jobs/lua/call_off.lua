-- Call a job off: what was not begun is dropped at once, what was begun ends as it stands. Returns the state,
-- or false if the job is unknown.
--
-- Keys: <p>:job:<id>, <p>:active:<model>, <p>:open:<id>, <p>:shard:<id>/<n>, <p>:lines:<id>/<n>,
--       <p>:due:<model>, <p>:finalizing (see register.lua)
-- ARGV: id, outcome
local p, id = KEYS[1], ARGV[1]
local job, open = p .. ':job:' .. id, p .. ':open:' .. id
local about = redis.call('HMGET', job, 'state', 'model', 'outcome')
if not about[1] then
  return false
end
if about[1] ~= 'queued' and about[1] ~= 'in_progress' then
  return about[1]
end
redis.call('HSET', job, 'outcome', ARGV[2], 'state', 'finalizing')
redis.call('ZREM', p .. ':active:' .. about[2], id)
for _, n in ipairs(redis.call('SMEMBERS', open)) do
  local ref = id .. '/' .. n
  local begun = redis.call('HGET', p .. ':shard:' .. ref, 'attempts') ~= '0'
  if not begun and redis.call('EXISTS', p .. ':lines:' .. ref) == 0 then
    redis.call('DEL', p .. ':shard:' .. ref)
    redis.call('ZREM', p .. ':due:' .. about[2], ref)
    redis.call('SREM', open, n)
  end
end
if redis.call('SCARD', open) == 0 then
  redis.call('ZADD', p .. ':finalizing', 0, id)
end
return 'finalizing'
