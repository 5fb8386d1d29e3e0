-- Announces that a node shuts down: its users in their grace are handed to the other nodes, if one is alive. That is
-- decided here, so that of two nodes that shut down at the same time the second takes over from the first.
--
-- KEYS  1 leases   2 nodes that were shut down in order   (both in the same slot)
-- ARGV  1 node   2 the prefix of all its names   3 what is left of its users' grace, in milliseconds; empty: it has no
--       users to hand over
-- Reply whether another node is alive and not shut down, and the nodes that were shut down and are not reaped yet
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local node, base = ARGV[1], ARGV[2]
local is_alone = true
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf')) do
    local is_own = other == base or string.sub(other, 1, #base + 1) == base .. '.'
    if not is_own and redis.call('SISMEMBER', KEYS[2], other) == 0 then is_alone = false end
end
if not is_alone and ARGV[3] ~= '' then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[3])), node)
    redis.call('SADD', KEYS[2], node)
end
return { is_alone and 0 or 1, redis.call('SMEMBERS', KEYS[2]) }
