-- Sets how many connections a node holds of some users of one session: absolute, so that a repeat changes nothing.
--
-- KEYS  1 the session's users: user id -> JSON   2 its meta: version, totals
--       3 leaves that the others are not known to have heard of: user id -> version   (all in the same slot)
-- ARGV  1 node   2 what is listed: 'some' of its users here, 'all' of them, or 'left': none, it is gone
--       3 whether a snapshot is wanted ('1')   then for each user: id, type, joined_at, connections, and whether
--       there was none in between ('1')
-- Reply version, ids of users that are new, ids of users that are gone, leaves to tell (id, version, …; for 'left'
--       only, those of a reaper before us included), snapshot (or empty)
local users, meta, untold = KEYS[1], KEYS[2], KEYS[3]
local node, listing = ARGV[1], ARGV[2]
local came, gone, totals, listed, is_changed = {}, {}, {}, {}, false

local function read(raw)
    local ok, user = pcall(cjson.decode, raw)
    -- What is no object is somebody else's accident: it is replaced or left alone.
    if ok and type(user) == 'table' then return user end
end

local function count(user, step)
    local kind = tostring(user.user_type)
    totals[kind] = (totals[kind] or 0) + step
end

local function release(id, user)
    -- A user without nodes was written by the old server: not ours to remove.
    if type(user.nodes) ~= 'table' or not user.nodes[node] then return end
    user.nodes[node] = nil
    if next(user.nodes) == nil then
        redis.call('HDEL', users, id)
        gone[#gone + 1] = id
        count(user, -1)
    else
        redis.call('HSET', users, id, cjson.encode(user))
    end
end

local function is_only_holder(nodes)
    return type(nodes) == 'table' and nodes[node] and next(nodes) == node and next(nodes, node) == nil
end

for at = 4, #ARGV, 5 do
    local id, kind, joined_at, connections = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    listed[id] = true
    local raw = redis.call('HGET', users, id)
    local user = raw and read(raw)
    if connections > 0 then
        if not user then
            user = { user_id = id, user_type = kind, joined_at = joined_at }
            came[#came + 1] = id
            count(user, 1)
        end
        if type(user.nodes) ~= 'table' then
            user.nodes = {}
            -- One of the old server's is ours from now on, and counted.
            if came[#came] ~= id then
                count(user, 1)
                is_changed = true
            end
        end
        local is_new_value = user.nodes[node] ~= connections
        -- Who left and is back, and was nowhere else, is who that is now.
        if ARGV[at + 4] == '1' and is_only_holder(user.nodes)
            and (user.user_type ~= kind or user.joined_at ~= joined_at) then
            count(user, -1)
            user.user_type, user.joined_at = kind, joined_at
            count(user, 1)
            is_new_value, is_changed = true, true
        end
        if is_new_value then
            user.nodes[node] = connections
            redis.call('HSET', users, id, cjson.encode(user))
        end
    elseif user then
        release(id, user)
    end
end

if listing ~= 'some' then
    local all = redis.call('HGETALL', users)
    for at = 1, #all, 2 do
        local user = not listed[all[at]] and read(all[at + 1])
        if user then release(all[at], user) end
    end
end

local version = tonumber(redis.call('HGET', meta, 'version') or '0')
if #came > 0 or #gone > 0 or is_changed then
    local time = redis.call('TIME')
    version = math.max(version + 1, time[1] * 1000000 + time[2])
    if redis.call('EXISTS', users) == 0 then
        redis.call('DEL', meta)
    else
        redis.call('HSET', meta, 'version', string.format('%.0f', version))
        for kind, step in pairs(totals) do
            if step ~= 0 then redis.call('HINCRBY', meta, 'total_' .. kind, step) end
        end
    end
end
version = string.format('%.0f', version)

local left = {}
if listing == 'left' then
    -- Kept until the log has them: whoever takes over from a reaper that died meanwhile tells them again.
    for _, id in ipairs(gone) do redis.call('HSET', untold, id, version) end
    left = redis.call('HGETALL', untold)
end
return { version, came, gone, left, ARGV[3] == '1' and redis.call('HVALS', users) or {} }
