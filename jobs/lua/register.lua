-- Make a job known: queued, none of its shards open yet. Returns 1, or 0 if the job is already known.
--
-- Keys of the whole ledger, <p> being KEYS[1]; times are milliseconds of the server's clock:
--   <p>:job:<id>         hash  spec (JSON), state, outcome, model, weight, shards, next, committed, succeeded,
--                              failed, prompt_tokens, completion_tokens, device_ms, *_ms times, problem
--   <p>:jobs             zset  <id> by time of registration
--   <p>:models           set   models that ever had a job
--   <p>:active:<model>   zset  <id> with shards to open, by its pass (stride scheduling: the lowest goes next)
--   <p>:open:<id>        set   shards open and not committed; everything below `next` that is not here is done
--   <p>:shard:<id>/<n>   hash  epoch, attempts, owner of an open shard
--   <p>:lines:<id>/<n>   hash  line number -> output line, the checkpoints of an open shard
--   <p>:due:<model>      zset  <id>/<n> open and not leased, by the time its hint was last published (0 = not)
--   <p>:leases           zset  <id>/<n> by its lease's deadline
--   <p>:finalizing       zset  <id> whose last shard is done, by the deadline of whoever writes its manifest
--   <p>:workers          hash  name -> description (JSON) with the time of its last heartbeat
--
-- ARGV: id, model, weight, shards, spec
local p, id, model = KEYS[1], ARGV[1], ARGV[2]
local job = p .. ':job:' .. id
if redis.call('EXISTS', job) == 1 then
  return 0
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', job, 'spec', ARGV[5], 'state', 'queued', 'outcome', '', 'model', model, 'weight', ARGV[3],
  'shards', ARGV[4], 'next', 0, 'committed', 0, 'succeeded', 0, 'failed', 0, 'prompt_tokens', 0,
  'completion_tokens', 0, 'device_ms', 0, 'created_ms', now)
redis.call('ZADD', p .. ':jobs', now, id)
redis.call('SADD', p .. ':models', model)
-- A newcomer starts level with the job whose turn is next: it neither waits for the others nor overtakes them.
local first = redis.call('ZRANGE', p .. ':active:' .. model, 0, 0, 'WITHSCORES')
redis.call('ZADD', p .. ':active:' .. model, first[2] or 0, id)
return 1
