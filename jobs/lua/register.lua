-- Make a job known: queued, none of its shards open yet. Returns 1, or 0 if the job is already known.
--
-- Keys: <p>:job:<id>, <p>:jobs, <p>:models, <p>:turns:<model>, <p>:deadlines
-- ARGV: id, model, weight, shards, lines, spec, deadline in ms or ''
local id, model, weight = ARGV[1], ARGV[2], tonumber(ARGV[3])
local job = job_key(id)
if redis.call('EXISTS', job) == 1 then
  return 0
end
local now = milliseconds()
redis.call('HSET', job, 'spec', ARGV[6], 'state', 'queued', 'outcome', '', 'model', model, 'weight', weight,
  'shards', ARGV[4], 'lines', ARGV[5], 'next', 0, 'committed', 0, 'succeeded', 0, 'failed', 0, 'prompt_tokens', 0,
  'completion_tokens', 0, 'device_ms', 0, 'wasted_ms', 0, 'created_ms', now)
redis.call('ZADD', p .. ':jobs', now, id)
redis.call('SADD', p .. ':models', model)
enter_turns(model, id, weight)
if ARGV[7] ~= '' then
  redis.call('ZADD', p .. ':deadlines', ARGV[7], id)
end
return 1
