-- What several scripts do alike; put in front of each. The keys of the whole ledger, <p> being KEYS[1]; times are
-- milliseconds of the server's clock:
--   <p>:job:<id>         hash  spec (JSON), state, outcome, model, weight, shards, lines, next, committed, succeeded,
--                              failed, prompt_tokens, completion_tokens, device_ms, wasted_ms, *_ms times,
--                              finalizer (the owner of the last commit), problem
--   <p>:jobs             zset  <id> by time of registration
--   <p>:models           set   models that ever had a job
--   <p>:turns:<model>    zset  <id> of every job that has not ended, by its tag, a negative number: the highest is
--                              claimed from next, of several the newest
--   <p>:clock:<model>    str   the tag that a newcomer starts with
--   <p>:weight:<model>   str   sum of the weights in turns
--   <p>:open:<id>        set   shards open and not committed; everything below `next` that is not here is done
--   <p>:shard:<id>/<n>   hash  of an open shard: epoch and owner, which fence its writes; attempts since its last
--                              finished line; suspects, the lines tried apart, and trials of them; due_ms; of its checkpointed
--                              lines failed, prompt_tokens, completion_tokens, device_ms; wasted_ms; unkept_ms, the
--                              device time of lines not checkpointed yet
--   <p>:lines:<id>/<n>   hash  line number -> output line, the checkpoints of an open shard
--   <p>:waiting:<id>     zset  <n> open and not leased, by number
--   <p>:due:<model>      zset  <id>/<n> open and not leased, by the time its hint was last published (0 = not)
--   <p>:leases           zset  <id>/<n> by its lease's deadline
--   <p>:claim:<owner>    str   the <id>/<n> that a claim got, for as long as its answer may be asked for again
--   <p>:finalizing       zset  <id> whose last shard is done, by the deadline of whoever writes its manifest
--   <p>:deadlines        zset  <id> by the time it has to have ended
--   <p>:reconciler       str   when somebody last reconciled
--   <p>:workers          hash  name -> description (JSON) with the time of its last heartbeat
-- One channel, <p>:called_off, has the <id> of each job that is called off while workers have shards of it.
local p = KEYS[1]

local function milliseconds()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(id)
  return p .. ':job:' .. id
end

local function shard_key(id, n)
  return p .. ':shard:' .. id .. '/' .. n
end

-- Whether a write of this epoch and owner is the shard's: its lease has to stand as well.
local function holds(id, n, epoch, owner)
  local held = redis.call('HMGET', shard_key(id, n), 'epoch', 'owner')
  return held[1] == epoch and held[2] == owner and redis.call('ZSCORE', p .. ':leases', id .. '/' .. n) ~= false
end

-- An open shard is there to be claimed. `published` is when its hint went out, 0 where the reconciler has to see to it.
local function make_due(model, id, n, published)
  redis.call('ZADD', p .. ':waiting:' .. id, n, n)
  redis.call('ZADD', p .. ':due:' .. model, published, id .. '/' .. n)
  redis.call('HSET', shard_key(id, n), 'owner', '', 'due_ms', milliseconds())
end

local function take_due(model, id, n)
  redis.call('ZREM', p .. ':waiting:' .. id, n)
  redis.call('ZREM', p .. ':due:' .. model, id .. '/' .. n)
end

-- What a dead attempt spent on lines that it never finished is lost.
local function drop_unkept(id, n)
  local shard = shard_key(id, n)
  local unkept = tonumber(redis.call('HGET', shard, 'unkept_ms') or 0)
  if unkept > 0 then
    redis.call('HINCRBY', shard, 'wasted_ms', unkept)
    redis.call('HSET', shard, 'unkept_ms', 0)
  end
end

-- Put the shard whose lease has run out where it can be claimed again.
local function expire_lease(id, n)
  redis.call('ZREM', p .. ':leases', id .. '/' .. n)
  redis.call('DEL', p .. ':claim:' .. (redis.call('HGET', shard_key(id, n), 'owner') or ''))
  drop_unkept(id, n)
  make_due(redis.call('HGET', job_key(id), 'model'), id, n, 0)
end

local function enter_turns(model, id, weight)
  redis.call('ZADD', p .. ':turns:' .. model, redis.call('GET', p .. ':clock:' .. model) or 0, id)
  redis.call('INCRBY', p .. ':weight:' .. model, weight)
end

-- With the last job the clock begins anew: tags never grow so large that they lose their last digits.
local function leave_turns(model, id)
  if redis.call('ZREM', p .. ':turns:' .. model, id) == 1 then
    redis.call('DECRBY', p .. ':weight:' .. model, redis.call('HGET', job_key(id), 'weight'))
    if redis.call('EXISTS', p .. ':turns:' .. model) == 0 then
      redis.call('DEL', p .. ':clock:' .. model, p .. ':weight:' .. model)
    end
  end
end

-- Nothing of the job is left to do but its manifest, which is the writer's until `deadline`.
local function await_manifest(model, id, deadline)
  leave_turns(model, id)
  redis.call('DEL', p .. ':waiting:' .. id)
  redis.call('ZREM', p .. ':deadlines', id)
  redis.call('HSET', job_key(id), 'state', 'finalizing')
  redis.call('ZADD', p .. ':finalizing', deadline, id)
end

-- Drop what was not begun, and let what was begun end as it stands. Returns the job's state.
local function call_off(id, outcome)
  local job, open = job_key(id), p .. ':open:' .. id
  local about = redis.call('HMGET', job, 'state', 'model')
  local state, model = about[1], about[2]
  if state ~= 'queued' and state ~= 'in_progress' then
    return state
  end
  redis.call('HSET', job, 'outcome', outcome, 'state', 'finalizing')
  redis.call('ZREM', p .. ':deadlines', id)
  for _, n in ipairs(redis.call('SMEMBERS', open)) do
    local ref = id .. '/' .. n
    local begun = redis.call('ZSCORE', p .. ':leases', ref) or redis.call('EXISTS', p .. ':lines:' .. ref) == 1
    if not begun then
      redis.call('DEL', shard_key(id, n))
      take_due(model, id, n)
      redis.call('SREM', open, n)
    end
  end
  if redis.call('SCARD', open) == 0 then
    await_manifest(model, id, 0)
  else
    redis.pcall('PUBLISH', p .. ':called_off', id) -- who may not publish leaves it to the next renewals
  end
  return 'finalizing'
end
