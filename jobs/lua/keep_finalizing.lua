-- Move the deadline of whoever writes a job's manifest. Returns 0 if the job is not being finalized.
--
-- Keys: <p>:finalizing
-- ARGV: id, lease in ms
return redis.call('ZADD', p .. ':finalizing', 'XX', 'CH', milliseconds() + tonumber(ARGV[2]), ARGV[1])
