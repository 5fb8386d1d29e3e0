-- Sets how many connections a node holds for some users of one session. The numbers are absolute, so that repeating a
-- write changes nothing. The script also checks whether the session's keys are as they were left, and repairs them: a
-- key that is deleted or evicted does not make users leave.
--
-- KEYS  1 the session's users: user id -> JSON   2 its meta (below)
--       3 pending leaves, which the log has not acknowledged: user id -> version   (all in the same slot)
-- ARGV  1 node   2 what is listed: 'some' of its users here, 'all' of them, or 'gone': none, the node is gone
--       3 which users' values to return: 'all', those 'listed', or 'none'
--       4 the session's birth as this node knows it (empty: unknown)
--       5 how long a session is suspect after damage to its keys, in milliseconds
--       6 the state that this node last knew of the session, and since when, as in meta (empty: unknown)
--       then for each user, in the order in which they joined and left: id, type, joined_at, connections (0: none, in
--       the grace; -1: none), and '1' if there was no connection in between, '2' if the stored value can't be read
-- Reply version, changes in their order (+id: has joined, -id: has left), leaves to publish (id, version, …; for 'gone'
--       only; they include those of an earlier reaper), values of users, birth, when damage was last found (or empty),
--       how long the session is still suspect in milliseconds, meta's changes, whether a user's type has changed, and
--       who waits: "news state since customers agents time", where news is 1 if this call has written any of it, and
--       time is when the state was seen, in microseconds
--
-- Meta  version: only grows   total_TYPE: users with nodes   count: all users
--       birth: when this key was created   damaged: when damage was last found   changes: the latest, in order, each a
--       line with the time in milliseconds and the change as in the reply
--       state: w (waiting: a customer and no agent), a (active: both) or i (idle: no customer); in replies also e
--       (ended: nobody)   since: since when it has been in this state, in milliseconds
local users, meta, pending_leaves = KEYS[1], KEYS[2], KEYS[3]
local node, listing, requested, birth_known, suspicion = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local state_known, since_known = string.match(ARGV[6], '^(%a) (%d+)$')
-- So many bytes of the latest changes are kept: enough for a full frame of events; and for so long, for late readers.
local MOST_CHANGES, CHANGES_KEPT_MS = 8192, 30000
local TYPES = { customer = true, agent = true, admin = true }
local changes, totals, listed = {}, {}, {}
-- The first joined_at of those who have joined, by type.
local joined = {}
-- Whether something is missing that was there after the last write.
local is_damaged, is_changed, is_retyped = false, false, false

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- A key of another type is not ours and is removed.
local head = redis.pcall('HMGET', meta, 'version', 'count', 'birth', 'damaged', 'changes',
    'total_customer', 'total_agent', 'total_admin', 'state', 'since')
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
-- Each node notices once that the keys are not those it knew.
local is_recreated = birth_known ~= '' and birth_known ~= birth
local must_recount = is_damaged or is_recreated or (counted or 0) ~= count

-- Returns nil for foreign values: they are replaced or left alone.
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

-- Counts users by type, without those of the old server.
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

-- Users beyond the count were added by the old server. Missing ones may be its users, too: it removes them without
-- updating the count.
if counted and count < counted then
    local _, found = recount()
    local known = 0
    for at = 6, 8 do known = known + (tonumber(head[at] or '') or 0) end
    if found < known then is_damaged = true end
end

local function write(id, user)
    local ok, raw = pcall(cjson.encode, user)
    if not ok then
        -- A foreign field, such as a NaN.
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
    -- A user without nodes was written by the old server, and is not ours to remove.
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

-- Whether another node has a connection. One that only has the user in the grace does not prevent a new type.
local function is_elsewhere(nodes)
    for name, connections in pairs(nodes) do
        if name ~= node and connections > 0 then return true end
    end
    return false
end

-- A time of RFC 3339 in UTC, in milliseconds since 1970.
local function milliseconds(text)
    local year, month, day, hour, minute, second =
        string.match(text, '^(%d%d%d%d)-(%d%d)-(%d%d)T(%d%d):(%d%d):(%d%d%.?%d*)Z$')
    if not year then return now_ms end
    year, month = tonumber(year), tonumber(month)
    -- Years begin in March, so that a leap day is their last.
    if month <= 2 then year, month = year - 1, month + 12 end
    local days = 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
        + math.floor((153 * (month - 3) + 2) / 5) + tonumber(day) - 719469
    local seconds = ((days * 24 + tonumber(hour)) * 60 + tonumber(minute)) * 60 + tonumber(second)
    return math.floor(seconds * 1000 + 0.5)
end

for at = 7, #ARGV, 5 do
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
            joined[kind] = math.min(joined[kind] or now_ms, milliseconds(joined_at))
        elseif not user.nodes then
            -- The old server's user is ours from now on. Recount: it may have replaced one of ours.
            user.nodes = {}
            must_recount = true
        end
        local before = user.nodes[node]
        local is_new_value = before ~= connections
        local has_joined = connections > 0 and ((before or 0) == 0 or ARGV[at + 4] == '1')
        -- A user who is back as another type, and is connected nowhere else, has that type from now on.
        if has_joined and user.user_type ~= kind and not is_elsewhere(user.nodes) then
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
-- The other nodes repair what is missing from now on. While the keys are suspect their recreation is no new incident.
if is_damaged or (is_recreated and suspect_for <= 0) then
    damaged, suspect_for = now_ms, suspicion
end
if suspect_for <= 0 then damaged = nil end

local before, sums, people = {}, {}, 0
for at, kind in ipairs({ 'customer', 'agent', 'admin' }) do before[kind] = tonumber(head[at + 5] or '') or 0 end
if must_recount then
    sums = recount()
else
    for kind in pairs(TYPES) do sums[kind] = before[kind] + (totals[kind] or 0) end
end
for kind in pairs(TYPES) do
    sums[kind] = sums[kind] or 0
    people = people + sums[kind]
end

local function state_of(sums)
    if sums.customer == 0 then return 'i' end
    return sums.agent == 0 and 'w' or 'a'
end
local state_before, since_before = head[9] or nil, tonumber(head[10] or '')
local state, since = people == 0 and 'e' or state_of(sums), since_before
local has_entered = state ~= state_before or not since

-- Since when the session is in its state, if it was not before. Keys that were lost are written by one node after the
-- other: a session must not seem to wait only from then on.
local function entered()
    local known = state_known == state and tonumber(since_known)
    if known and known <= now_ms and known >= (since_before or 0) then return known end
    if #changes == 0 and not is_changed and version > 0 then
        -- A node of an older version has changed it.
        return math.min(math.floor(version / 1000), now_ms)
    end
    if state == 'w' and before.customer == 0 then return joined.customer or now_ms end
    if state == 'i' and not state_before then return math.min(joined.agent or now_ms, joined.admin or now_ms) end
    if state ~= 'a' then return now_ms end
    local at = before.customer + before.agent > 0 and since_before or 0
    if before.customer == 0 then at = math.max(at, joined.customer or now_ms) end
    if before.agent == 0 then at = math.max(at, joined.agent or now_ms) end
    return at > 0 and at or now_ms
end
if has_entered then since = entered() end

local log = head[5] or ''
local is_news = false
if #changes > 0 or is_changed or must_recount then
    is_news = true
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
        for kind, sum in pairs(sums) do
            if sum ~= before[kind] or must_recount then redis.call('HSET', meta, 'total_' .. kind, sum) end
        end
    end
end
if state == 'e' then
    if count > 0 and state_before then redis.call('HDEL', meta, 'state', 'since') end
elseif has_entered then
    is_news = true
    redis.call('HSET', meta, 'state', state, 'since', string.format('%.0f', since))
end
version = string.format('%.0f', version)

local leaves = {}
if listing == 'gone' then
    -- Kept until the log has acknowledged them: if the reaper dies before, the next one publishes them again.
    local found = redis.call('TYPE', pending_leaves).ok
    if found ~= 'hash' and found ~= 'none' then redis.call('DEL', pending_leaves) end
    for _, change in ipairs(changes) do redis.call('HSET', pending_leaves, string.sub(change, 2), version) end
    leaves = redis.call('HGETALL', pending_leaves)
end

local values = {}
if requested == 'all' then
    values = redis.call('HVALS', users)
elseif requested == 'listed' then
    for _, id in ipairs(listed) do values[#values + 1] = redis.call('HGET', users, id) or '' end
end
return {
    version, changes, leaves, values, birth, damaged and string.format('%.0f', damaged) or '',
    math.max(suspect_for, 0), requested == 'all' and log or '', is_retyped and 1 or 0,
    string.format('%d %s %.0f %d %d %.0f', is_news and 1 or 0, state, since, sums.customer, sums.agent,
        time[1] * 1000000 + time[2]),
}
