-- Open shards until `backlog` of the model's are waiting, and at least one of each job whose turn is near: a claim
-- then always finds the job that it is fair to serve. Returns {id, shard, id, shard, ...}: the caller publishes these.
--
-- Keys: <p>:turns:<model>, <p>:due:<model>, <p>:waiting:<id>, <p>:job:<id>, <p>:open:<id>, <p>:shard:<id>/<n>
-- ARGV: model, backlog
local model, backlog = ARGV[1], tonumber(ARGV[2])
local turns, due = p .. ':turns:' .. model, p .. ':due:' .. model
local now = milliseconds()
local opened = {}

-- Opens the job's next shard; false where it has no more, or was called off.
local function open_next(id)
  local job = job_key(id)
  local about = redis.call('HMGET', job, 'next', 'shards', 'outcome')
  local n = tonumber(about[1])
  if n >= tonumber(about[2]) or about[3] ~= '' then
    return false
  end
  redis.call('HSET', job, 'next', n + 1)
  redis.call('HSET', shard_key(id, n), 'epoch', 0, 'attempts', 0)
  redis.call('SADD', p .. ':open:' .. id, n)
  make_due(model, id, n, now)
  table.insert(opened, id)
  table.insert(opened, n)
  return true
end

-- Jobs that have something waiting, or have been given it, in the order of their turns.
local near, from = {}, 0
while #near < backlog do
  local ids = redis.call('ZREVRANGE', turns, from, from + backlog - 1)
  if #ids == 0 then
    break
  end
  for _, id in ipairs(ids) do
    if #near < backlog and (redis.call('EXISTS', p .. ':waiting:' .. id) == 1 or open_next(id)) then
      table.insert(near, id)
    end
  end
  from = from + backlog
end

local room = backlog - redis.call('ZCARD', due)
while room > 0 do
  local more = false
  for _, id in ipairs(near) do
    if room > 0 and open_next(id) then
      room, more = room - 1, true
    end
  end
  if not more then
    break
  end
end
return opened
