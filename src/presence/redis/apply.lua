-- Sets how many connections a node holds of some users of one session: absolute, so that a repeat changes nothing.
-- On the way it looks whether the session's keys are what they were left as, and mends them: whoever can delete a key,
-- or evicts it, does not make users leave.
--
-- KEYS  1 the session's users: user id -> JSON   2 its meta (below)
--       3 leaves that the others are not known to have heard of: user id -> version   (all in the same slot)
-- ARGV  1 node   2 what is listed: 'some' of its users here, 'all' of them, or 'left': none, it is gone
--       3 what is wanted of the users: 'all', those 'listed', or 'none'
--       4 the session's birth as this node knows it (empty: it expects nothing)
--       5 how long a session whose keys were damaged is suspect, in milliseconds
--       then for each user, in the order in which they came and went: id, type, joined_at, connections (0: none, in
--       the grace; -1: none), and whether there was none in between ('1'), or its value can't be read ('2')
-- Reply version, changes in their order (+id: has come, -id: has gone), leaves to tell (id, version, …; for 'left'
--       only, those of a reaper before us included), values of users, birth, when damage was last found (or empty),
--       for how long the session is still suspect in milliseconds, meta's changes, whether somebody's type has changed
--
-- Meta  version: only grows   total_TYPE: of those with nodes   count: how many users there are
--       birth: when this key was made   damaged: when damage was last found   changes: the latest, in order, each a line
--       of the time in milliseconds and the change as in the reply
local users, meta, untold = KEYS[1], KEYS[2], KEYS[3]
local node, listing, wanted, birth_known, suspicion = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
-- As many bytes of the latest changes as a full frame of events may need, and for as long as somebody may look late.
local MOST_CHANGES, CHANGES_KEPT_MS = 8192, 30000
local TYPES = { customer = true, agent = true, admin = true }
local changes, totals, listed = {}, {}, {}
-- Whether something was lost that was there when the keys were written last.
local is_damaged, is_changed, is_retyped = false, false, false

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- A key of another type is nobody's data.
local head = redis.pcall('HMGET', meta, 'version', 'count', 'birth', 'damaged', 'changes',
    'total_customer', 'total_agent', 'total_admin')
if head.err then
    redis.call('DEL', meta)
    head, is_damaged = {}, true
end
local count = redis.pcall('HLEN', users)
if type(count) == 'table' then
    redis.call('DEL', users)
    count, is_damaged = 0, true
end
local version, counted, birth = tonumber(head[1] or '0'), tonumber(head[2] or ''), head[3] or ''
-- Each node finds once that the keys are others than it knew.
local is_anew = birth_known ~= '' and birth_known ~= birth
local must_recount = is_damaged or is_anew or (counted or 0) ~= count

-- What is none of ours to read is nil: it is replaced or left alone.
local function read(id, raw)
    local ok, user = pcall(cjson.decode, raw)
    if not ok or type(user) ~= 'table' or user.user_id ~= id then return nil end
    if not TYPES[user.user_type] or type(user.joined_at) ~= 'string' then return nil end
    if user.nodes == cjson.null then user.nodes = nil end
    if user.nodes ~= nil and type(user.nodes) ~= 'table' then return nil end
    for name, connections in pairs(user.nodes or {}) do
        local is_count = type(connections) == 'number' and connections >= 0 and connections < 1e9
        if type(name) ~= 'string' or not is_count then return nil end
    end
    return user
end

-- Users by type, without those of the old server.
local function recount()
    local sums, sum = {}, 0
    local all = redis.call('HGETALL', users)
    for at = 1, #all, 2 do
        local user = read(all[at], all[at + 1])
        if user and user.nodes then
            sums[user.user_type], sum = (sums[user.user_type] or 0) + 1, sum + 1
        end
    end
    return sums, sum
end

-- More than were counted are the old server's. So may those be who are missing: it takes out its own without a word.
if counted and count < counted then
    local _, found = recount()
    local known = 0
    for at = 6, 8 do known = known + (tonumber(head[at] or '') or 0) end
    if found < known then is_damaged = true end
end

local function write(id, user)
    local ok, raw = pcall(cjson.encode, user)
    if not ok then
        -- Something beside our fields, such as a NaN.
        raw = cjson.encode({
            user_id = id, user_type = user.user_type, joined_at = user.joined_at, nodes = user.nodes,
        })
    end
    redis.call('HSET', users, id, raw)
end

local function tally(user, step)
    totals[user.user_type] = (totals[user.user_type] or 0) + step
end

local function release(id, user)
    -- A user without nodes was written by the old server: not ours to remove.
    if not user.nodes or not user.nodes[node] then return end
    user.nodes[node] = nil
    if next(user.nodes) == nil then
        redis.call('HDEL', users, id)
        changes[#changes + 1] = '-' .. id
        tally(user, -1)
    else
        write(id, user)
    end
end

-- Whether another node has a connection; one that is only in its grace says nothing against a new type.
local function is_elsewhere(nodes)
    for name, connections in pairs(nodes) do
        if name ~= node and connections > 0 then return true end
    end
    return false
end

for at = 6, #ARGV, 5 do
    local id, kind, joined_at, connections = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    listed[#listed + 1] = id
    listed[id] = true
    local raw = ARGV[at + 4] ~= '2' and redis.call('HGET', users, id)
    local user = raw and read(id, raw)
    if (raw and not user) or ARGV[at + 4] == '2' then
        is_damaged, must_recount = true, true
    end
    if connections >= 0 then
        if not user then
            user = { user_id = id, user_type = kind, joined_at = joined_at, nodes = {} }
            changes[#changes + 1] = '+' .. id
            tally(user, 1)
        elseif not user.nodes then
            -- One of the old server's is ours from now on, and counted: anew, for it may have overwritten one of ours.
            user.nodes = {}
            must_recount = true
        end
        local before = user.nodes[node]
        local is_new_value = before ~= connections
        local has_come = connections > 0 and ((before or 0) == 0 or ARGV[at + 4] == '1')
        -- Who is back as another type, and was nowhere else, is who that is now.
        if has_come and user.user_type ~= kind and not is_elsewhere(user.nodes) then
            tally(user, -1)
            user.user_type, user.joined_at = kind, joined_at
            tally(user, 1)
            is_new_value, is_changed, is_retyped = true, true, true
        end
        if is_new_value then
            user.nodes[node] = connections
            write(id, user)
        end
    elseif user then
        release(id, user)
    end
end

if listing ~= 'some' then
    local all = redis.call('HGETALL', users)
    for at = 1, #all, 2 do
        local user = not listed[all[at]] and read(all[at], all[at + 1])
        if user then release(all[at], user) end
    end
end

local damaged = tonumber(head[4] or '')
local suspect_for = damaged and damaged + suspicion - now_ms or 0
-- What is lost now the others mend from now on. That the keys were made anew is known while they are suspect.
if is_damaged or (is_anew and suspect_for <= 0) then
    damaged, suspect_for = now_ms, suspicion
end
if suspect_for <= 0 then damaged = nil end

local log = head[5] or ''
if #changes > 0 or is_changed or must_recount then
    version = math.max(version + 1, time[1] * 1000000 + time[2])
    count = redis.call('HLEN', users)
    if count == 0 then
        redis.call('DEL', meta)
        birth = ''
    else
        if birth == '' then birth = time[1] .. '.' .. time[2] end
        if #changes > 0 then
            local lines = {}
            for at, change in string.gmatch(log, '(%d+) ([^\n]*)\n') do
                if now_ms - tonumber(at) < CHANGES_KEPT_MS then lines[#lines + 1] = at .. ' ' .. change .. '\n' end
            end
            for _, change in ipairs(changes) do
                lines[#lines + 1] = string.format('%.0f %s\n', now_ms, change)
            end
            log = table.concat(lines)
            if #log > MOST_CHANGES then log = string.match(string.sub(log, -MOST_CHANGES), '\n(.*)$') or '' end
        end
        redis.call('HSET', meta, 'version', string.format('%.0f', version), 'count', count, 'birth', birth,
            'changes', log)
        if damaged then redis.call('HSET', meta, 'damaged', string.format('%.0f', damaged)) end
        if must_recount then
            for kind in pairs(TYPES) do totals[kind] = nil end
            local sums = recount()
            for kind in pairs(TYPES) do redis.call('HSET', meta, 'total_' .. kind, sums[kind] or 0) end
        end
        for kind, step in pairs(totals) do
            if step ~= 0 then redis.call('HINCRBY', meta, 'total_' .. kind, step) end
        end
    end
end
version = string.format('%.0f', version)

local left = {}
if listing == 'left' then
    -- Kept until the log has them: whoever takes over from a reaper that died meanwhile tells them again.
    local found = redis.call('TYPE', untold).ok
    if found ~= 'hash' and found ~= 'none' then redis.call('DEL', untold) end
    for _, change in ipairs(changes) do redis.call('HSET', untold, string.sub(change, 2), version) end
    left = redis.call('HGETALL', untold)
end

local values = {}
if wanted == 'all' then
    values = redis.call('HVALS', users)
elseif wanted == 'listed' then
    for _, id in ipairs(listed) do values[#values + 1] = redis.call('HGET', users, id) or '' end
end
return {
    version, changes, left, values, birth, damaged and string.format('%.0f', damaged) or '',
    math.max(suspect_for, 0), wanted == 'all' and log or '', is_retyped and 1 or 0,
}
