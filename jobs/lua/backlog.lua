-- How much is left to do for a model. Returns {jobs that have not ended, lines of theirs not in a committed part}.
--
-- Keys: <p>:turns:<model>, <p>:job:<id>
-- ARGV: model
local ids = redis.call('ZRANGE', p .. ':turns:' .. ARGV[1], 0, -1)
local lines = 0
for _, id in ipairs(ids) do
  local about = redis.call('HMGET', job_key(id), 'lines', 'succeeded', 'failed')
  lines = lines + about[1] - about[2] - about[3]
end
return {#ids, lines}
