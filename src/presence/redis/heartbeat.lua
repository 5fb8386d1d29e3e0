-- Renews a node's lease by Redis's own clock, and claims dead nodes for it to take back: one reaper each, as long
-- as that one lives.
--
-- KEYS  1 leases: node -> when it ends, in milliseconds   2 claims: dead node -> "until reaper" (in the same slot)
-- ARGV  1 node   2 the lease's length   3 a claim's length, both in milliseconds; 0 claims nobody
-- Reply how the lease was found ('held', 'ended', 'absent'), the dead nodes that are ours to take back
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local node, claim = ARGV[1], tonumber(ARGV[3])

local ends = redis.call('ZSCORE', KEYS[1], node)
local found = not ends and 'absent' or tonumber(ends) > now and 'held' or 'ended'
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), node)

local ours = {}
if claim > 0 then
    for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 16)) do
        local till, reaper = string.match(redis.call('HGET', KEYS[2], dead) or '', '^(%d+) (.*)$')
        if not till or tonumber(till) <= now or reaper == node then
            redis.call('HSET', KEYS[2], dead, string.format('%.0f %s', now + claim, node))
            ours[#ours + 1] = dead
        end
    end
end
return { found, ours }
