-- Give the caller the jobs that nobody is finalizing, under a lease. Returns their ids.
--
-- Keys: <p>:finalizing (see register.lua)
-- ARGV: lease in ms
local key = KEYS[1] .. ':finalizing'
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ids = redis.call('ZRANGEBYSCORE', key, '-inf', now)
for _, id in ipairs(ids) do
  redis.call('ZADD', key, now + tonumber(ARGV[1]), id)
end
return ids
