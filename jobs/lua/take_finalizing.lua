-- Give the caller the jobs that nobody is finalizing, under a lease. Returns their ids.
--
-- Keys: <p>:finalizing
-- ARGV: lease in ms
local key, now = p .. ':finalizing', milliseconds()
local ids = redis.call('ZRANGEBYSCORE', key, '-inf', now)
for _, id in ipairs(ids) do
  redis.call('ZADD', key, now + tonumber(ARGV[1]), id)
end
return ids
