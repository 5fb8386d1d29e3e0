-- Deregisters a node that holds no users any more, unless it has renewed its lease.
--
-- KEYS  1 leases   2 claims   3 nodes that have not written everything they hold yet   4 nodes that were shut down in
--       order   (all in the same slot)
-- ARGV  1 node
-- Reply 0: still registered   1: deregistered   2: deregistered, and had been shut down in order
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
local was_shut_down = redis.call('SISMEMBER', KEYS[4], ARGV[1]) == 1
if not ends or tonumber(ends) <= now or was_shut_down then
    redis.call('ZREM', KEYS[1], ARGV[1])
    redis.call('HDEL', KEYS[2], ARGV[1])
    redis.call('SREM', KEYS[3], ARGV[1])
    redis.call('SREM', KEYS[4], ARGV[1])
    return was_shut_down and 2 or 1
end
return 0
