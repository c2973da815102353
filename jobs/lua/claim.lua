-- Take a shard under a lease and a new epoch: of the job whose turn it is, which need not be the hint's. Of the
-- hint's own job it is the hinted shard, where that is there to be taken, else the first that waits.
-- A claim repeated by the same owner gets the same shard, so that an answer lost on the way can be asked for again.
-- Returns {'claimed', id, shard, epoch, attempts, outcome, suspects, trials, device ms, wasted ms, waited ms}, or
-- {why not}: unknown, unopened, committed, leased.
--
-- The tags are those of weighted fair queueing (Demers, Keshav, Shenker, "Analysis and Simulation of a Fair Queueing
-- Algorithm", 1989), negated: a job's falls by 1/weight with each of its shards, the clock by 1/(sum of weights) with
-- any. A newcomer starts at the clock: it is next where it is alone with others that are level, and starves nobody.
--
-- Keys: <p>:job:<id>, <p>:shard:<id>/<n>, <p>:leases, <p>:waiting:<id>, <p>:due:<model>, <p>:turns:<model>,
--       <p>:clock:<model>, <p>:weight:<model>, <p>:claim:<owner>
-- ARGV: id, shard, owner, lease in ms
local id, n, owner, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local leases = p .. ':leases'
local model = redis.call('HGET', job_key(id), 'model')
if not model then
  return {'unknown'}
end
local now = milliseconds()

local function answer(of, number, waited)
  local shard = redis.call('HMGET', shard_key(of, number), 'epoch', 'attempts', 'suspects', 'trials', 'device_ms',
    'wasted_ms')
  return {'claimed', of, tonumber(number), tonumber(shard[1]), tonumber(shard[2]),
    redis.call('HGET', job_key(of), 'outcome'), shard[3] or '', tonumber(shard[4] or 0), tonumber(shard[5] or 0),
    tonumber(shard[6] or 0), waited}
end

local before = redis.call('GET', p .. ':claim:' .. owner)
if before then
  local of, number = string.match(before, '^(.*)/(.*)$')
  if redis.call('HGET', shard_key(of, number), 'owner') == owner then
    return answer(of, number, 0)
  end
end

local deadline = redis.call('ZSCORE', leases, id .. '/' .. n)
if deadline and tonumber(deadline) <= now then
  expire_lease(id, n)
end

-- The first job in the order of turns that has a shard waiting.
local function whose_turn()
  local turns, from = p .. ':turns:' .. model, 0
  while true do
    local ids = redis.call('ZREVRANGE', turns, from, from + 15, 'WITHSCORES')
    if #ids == 0 then
      return nil
    end
    for i = 1, #ids, 2 do
      if redis.call('EXISTS', p .. ':waiting:' .. ids[i]) == 1 then
        return ids[i], tonumber(ids[i + 1])
      end
    end
    from = from + 16
  end
end

local of, tag = whose_turn()
if not of then
  if redis.call('ZSCORE', leases, id .. '/' .. n) then
    return {'leased'}
  end
  return {tonumber(n) < tonumber(redis.call('HGET', job_key(id), 'next')) and 'committed' or 'unopened'}
end
local waiting = p .. ':waiting:' .. of
local number = of == id and redis.call('ZSCORE', waiting, n) and n or redis.call('ZRANGE', waiting, 0, 0)[1]
take_due(model, of, number)
local shard = shard_key(of, number)
redis.call('HINCRBY', shard, 'epoch', 1)
redis.call('HINCRBY', shard, 'attempts', 1)
redis.call('HSET', shard, 'owner', owner)
redis.call('ZADD', leases, now + lease, of .. '/' .. number)
redis.call('SET', p .. ':claim:' .. owner, of .. '/' .. number, 'PX', math.max(lease, 1))
local weight = tonumber(redis.call('HGET', job_key(of), 'weight'))
redis.call('ZINCRBY', p .. ':turns:' .. model, -1 / weight, of)
local clock = math.min(tonumber(redis.call('GET', p .. ':clock:' .. model) or 0), tag)
redis.call('SET', p .. ':clock:' .. model, string.format('%.17g', clock - 1 / redis.call('GET', p .. ':weight:' .. model)))
if redis.call('HGET', job_key(of), 'state') == 'queued' then
  redis.call('HSET', job_key(of), 'state', 'in_progress', 'started_ms', now)
end
return answer(of, number, now - tonumber(redis.call('HGET', shard, 'due_ms')))
