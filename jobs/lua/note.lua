-- Write down what holds a job up; '' clears it. Returns 0 if the job is unknown.
--
-- Keys: <p>:job:<id>
-- ARGV: id, text
local job = job_key(ARGV[1])
if redis.call('EXISTS', job) == 0 then
  return 0
end
redis.call('HSET', job, 'problem', ARGV[2])
return 1
