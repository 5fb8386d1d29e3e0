-- Renews a node's lease by Redis's own clock, and claims dead nodes for it to reap. Each dead node has one reaper, as
-- long as that one is alive.
--
-- KEYS  1 leases: node -> when it ends, in milliseconds   2 claims: dead node -> "until reaper"
--       3 epoch: when this Redis was first used; emptying Redis removes it
--       4 nodes that have not written everything they hold yet   5 nodes that were shut down in order, whose lease is
--       their users' grace   (all in the same slot)
-- ARGV  1 node   2 duration of the lease   3 duration of a claim, both in milliseconds; 0: no claims
--       4 whether the node has not written everything it holds yet ('1')
--       5 whether it may claim dead nodes ('1'), or only those that were shut down
--       6 the epoch as the node knows it (empty: unknown)   then the node's retired names
-- Reply whether the lease existed and had not ended, epoch, the nodes this one has claimed, the live nodes that have
--       written everything, the live nodes that have not
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local node, claim = ARGV[1], tonumber(ARGV[3])

-- A key of another type is not ours, and would stop every node: it is removed.
for at, type in ipairs({ 'zset', 'hash', 'string', 'set', 'set' }) do
    local found = redis.call('TYPE', KEYS[at]).ok
    if found ~= type and found ~= 'none' then redis.call('DEL', KEYS[at]) end
end

redis.call('SET', KEYS[3], time[1] .. '.' .. time[2], 'NX')
local ends = redis.call('ZSCORE', KEYS[1], node)
local held = ends and tonumber(ends) > now
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), node)

local ours = {}
if claim > 0 then
    for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 64)) do
        local may_claim = ARGV[5] == '1' or redis.call('SISMEMBER', KEYS[5], dead) == 1
        local till, reaper = string.match(redis.call('HGET', KEYS[2], dead) or '', '^(%d+) (.*)$')
        if may_claim and (not till or tonumber(till) <= now or reaper == node) then
            redis.call('HSET', KEYS[2], dead, string.format('%.0f %s', now + claim, node))
            ours[#ours + 1] = dead
        end
    end
end
local epoch = redis.call('GET', KEYS[3])
-- A node that knows another epoch has not noticed yet that Redis was emptied.
local is_writing = ARGV[4] == '1' or (ARGV[6] ~= '' and ARGV[6] ~= epoch)
redis.call(is_writing and 'SADD' or 'SREM', KEYS[4], node)
for at = 7, #ARGV do redis.call('SREM', KEYS[4], ARGV[at]) end
local done, writing = {}, {}
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf')) do
    if redis.call('SISMEMBER', KEYS[5], other) == 0 then
        local list = redis.call('SISMEMBER', KEYS[4], other) == 1 and writing or done
        list[#list + 1] = other
    end
end
return { held and 1 or 0, epoch, ours, done, writing }
