-- Renews a node's lease by Redis's own clock.
--
-- KEYS  1 leases: node -> when it ends, in milliseconds
-- ARGV  1 node   2 the lease's length in milliseconds
-- Reply whether the lease was there and had not ended, nodes whose lease has ended
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
local held = ends and tonumber(ends) > now
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
return { held and 1 or 0, redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 16) }
