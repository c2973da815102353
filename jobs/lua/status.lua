-- A job's fields, and how many lines of its open shards are checkpointed. Returns {checkpointed, fields...},
-- or false if the job is unknown.
--
-- Keys: <p>:job:<id>, <p>:open:<id>, <p>:lines:<id>/<n> (see register.lua)
-- ARGV: id
local p, id = KEYS[1], ARGV[1]
local fields = redis.call('HGETALL', p .. ':job:' .. id)
if #fields == 0 then
  return false
end
local lines = 0
for _, n in ipairs(redis.call('SMEMBERS', p .. ':open:' .. id)) do
  lines = lines + redis.call('HLEN', p .. ':lines:' .. id .. '/' .. n)
end
return {lines, unpack(fields)}
