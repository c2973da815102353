-- Make a job known again from what the store has of it. Returns 1, or 0 if the job is known: the ledger is nearer
-- to the truth than whoever asks.
--
-- Keys: <p>:job:<id>, <p>:jobs, <p>:models, <p>:turns:<model>, <p>:open:<id>, <p>:shard:<id>/<n>,
--       <p>:waiting:<id>, <p>:due:<model>, <p>:finalizing, <p>:deadlines
-- ARGV: id, model, weight, shards, lines, spec, deadline in ms or '', state, outcome, next, committed, succeeded,
--       failed, prompt tokens, completion tokens, device ms, wasted ms, created ms, finished ms or '',
--       seconds to remember an ended job, open shards below next ...
local id, model, weight, state = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[8]
local job = job_key(id)
if redis.call('EXISTS', job) == 1 then
  return 0
end
redis.call('HSET', job, 'spec', ARGV[6], 'state', state, 'outcome', ARGV[9], 'model', model, 'weight', weight,
  'shards', ARGV[4], 'lines', ARGV[5], 'next', ARGV[10], 'committed', ARGV[11], 'succeeded', ARGV[12],
  'failed', ARGV[13], 'prompt_tokens', ARGV[14], 'completion_tokens', ARGV[15], 'device_ms', ARGV[16],
  'wasted_ms', ARGV[17], 'created_ms', ARGV[18])
redis.call('ZADD', p .. ':jobs', ARGV[18], id)
redis.call('SADD', p .. ':models', model)
if ARGV[19] ~= '' then
  redis.call('HSET', job, 'finished_ms', ARGV[19])
  redis.call('EXPIRE', job, ARGV[20])
  return 1
end
if state == 'finalizing' then
  redis.call('ZADD', p .. ':finalizing', 0, id)
  return 1
end
redis.call('HSET', job, 'started_ms', milliseconds())
enter_turns(model, id, weight)
if ARGV[7] ~= '' then
  redis.call('ZADD', p .. ':deadlines', ARGV[7], id)
end
for i = 21, #ARGV do
  redis.call('HSET', shard_key(id, ARGV[i]), 'epoch', 0, 'attempts', 0)
  redis.call('SADD', p .. ':open:' .. id, ARGV[i])
  make_due(model, id, ARGV[i], 0)
end
return 1
