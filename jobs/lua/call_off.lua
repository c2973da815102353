-- Call a job off: what was not begun is dropped at once, what was begun ends as it stands. Returns the state,
-- or false if the job is unknown.
--
-- Keys: <p>:job:<id>, <p>:turns:<model>, <p>:open:<id>, <p>:shard:<id>/<n>, <p>:waiting:<id>, <p>:due:<model>,
--       <p>:finalizing, <p>:deadlines
-- ARGV: id, outcome
if redis.call('EXISTS', job_key(ARGV[1])) == 0 then
  return false
end
return call_off(ARGV[1], ARGV[2])
