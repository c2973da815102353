-- A job's fields, and what its open shards have checkpointed. Returns {lines, failed, prompt tokens, completion
-- tokens, fields...}, or false if the job is unknown.
--
-- Keys: <p>:job:<id>, <p>:open:<id>, <p>:shard:<id>/<n>, <p>:lines:<id>/<n>
-- ARGV: id
local id = ARGV[1]
local fields = redis.call('HGETALL', job_key(id))
if #fields == 0 then
  return false
end
local lines, failed, prompt_tokens, completion_tokens = 0, 0, 0, 0
for _, n in ipairs(redis.call('SMEMBERS', p .. ':open:' .. id)) do
  local kept = redis.call('HLEN', p .. ':lines:' .. id .. '/' .. n)
  if kept > 0 then
    local shard = redis.call('HMGET', shard_key(id, n), 'failed', 'prompt_tokens', 'completion_tokens')
    lines = lines + kept
    failed = failed + tonumber(shard[1] or 0)
    prompt_tokens = prompt_tokens + tonumber(shard[2] or 0)
    completion_tokens = completion_tokens + tonumber(shard[3] or 0)
  end
end
return {lines, failed, prompt_tokens, completion_tokens, unpack(fields)}
