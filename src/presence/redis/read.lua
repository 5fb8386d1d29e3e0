-- Stores how far a user has read a session's messages, unless the user has read further already.
--
-- KEYS  1 the session's readers: user id -> "position type time message_id"; a position has 32 hexadecimal digits, so that texts
--       compare as positions do
-- ARGV  1 user id   2 what to store   3 how long to keep it, in seconds   4 the most readers
-- Reply 0: the user has read further   1: that is how far the user has read
local key, user, up_to, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4])

-- A key of another type is not ours and is removed.
local found = redis.call('TYPE', key).ok
if found ~= 'hash' and found ~= 'none' then redis.call('DEL', key) end

local known = redis.call('HGET', key, user)
if known and string.match(known, '^%x+ ') and #known > 33 and string.sub(known, 1, 32) > string.sub(up_to, 1, 32) then
    return 0
end
redis.call('HSET', key, user, up_to)
redis.call('EXPIRE', key, tonumber(ARGV[3]))
if redis.call('HLEN', key) > most then
    local all, readers = redis.call('HGETALL', key), {}
    for at = 1, #all, 2 do
        if all[at] ~= user then readers[#readers + 1] = { all[at], all[at + 1] } end
    end
    table.sort(readers, function(a, b) return a[2] < b[2] end)
    for at = 1, math.floor(most / 10) do redis.call('HDEL', key, readers[at][1]) end
end
return 1
