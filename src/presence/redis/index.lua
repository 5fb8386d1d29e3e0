-- Writes sessions to the index of all sessions, which the agents' desk reads. The state comes from apply.lua, whose
-- keys are in other slots; so this is a script of its own, and a late write must not undo a newer one.
--
-- KEYS  1 entries: session -> "version state since customers agents", as apply.lua has answered, followed by " s" if it
--       is suspect; and '#seq', the number of the last change, and '#pruned', that of the last forgotten one
--       2 order: the sessions with somebody connected, as "state:since:session", all with score 0
--       3 feed: session -> the number of its last change   4 ended: session -> when it ended, in milliseconds
--       (all in the same slot)
-- ARGV  1 how long an ended session is remembered, in milliseconds: so long a late write can't bring it back, and
--       readers of the feed may be away   2 how many are remembered
--       then for each session: id, version, state, since, customers, agents, and '1' if that is suspect: the session's
--       keys were damaged, and users may be missing. It replaces nothing that is not
local entries, order, feed, ended = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local keep, most = tonumber(ARGV[1]), tonumber(ARGV[2])
-- So many ended sessions are forgotten at a time: more than can end in one call.
local PRUNED_AT_ONCE = 1000

-- A key of another type is not ours, and would stop every node: it is removed.
for at, type in ipairs({ 'hash', 'zset', 'zset', 'zset' }) do
    local found = redis.call('TYPE', KEYS[at]).ok
    if found ~= type and found ~= 'none' then redis.call('DEL', KEYS[at]) end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(redis.call('HGET', entries, '#seq') or '')
-- Without the entries nobody knows what the other keys are made of. All nodes write what they hold again.
if not last then redis.call('DEL', order, feed, ended) end
-- By the clock, so that readers of a lost feed don't miss what follows.
local seq = math.max(last or 0, time[1] * 1000000 + time[2])

local function place(id, state, since)
    return string.format('%s:%015.0f:%s', state, tonumber(since), id)
end

for at = 3, #ARGV, 7 do
    local id, version, state, since = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]
    local is_suspect = ARGV[at + 6] == '1'
    local entry = table.concat(ARGV, ' ', at + 1, at + 5) .. (is_suspect and ' s' or '')
    local before = redis.call('HGET', entries, id)
    local known, known_state, known_since = string.match(before or '', '^(%d+) (%a) (%d+) ')
    known = tonumber(known or '')
    local is_news = not known or version > known or (version == known and before ~= entry)
    if is_suspect and known and string.sub(before, -2) ~= ' s' then
        is_news = false
    elseif known and version == known and not is_news then
        -- Only checked.
        is_news = not redis.call('ZSCORE', feed, id)
            or (state ~= 'e' and not redis.call('ZSCORE', order, place(id, state, since)))
    end
    if is_news then
        if known and known_state ~= 'e' then
            redis.call('ZREM', order, place(id, known_state, known_since))
        end
        redis.call('HSET', entries, id, entry)
        if state == 'e' then
            redis.call('ZADD', ended, string.format('%.0f', now), id)
        else
            redis.call('ZADD', order, 0, place(id, state, since))
            redis.call('ZREM', ended, id)
        end
        seq = seq + 1
        redis.call('ZADD', feed, string.format('%.0f', seq), id)
    end
end
redis.call('HSET', entries, '#seq', string.format('%.0f', seq))

local pruned = tonumber(redis.call('HGET', entries, '#pruned') or '0')
local is_pruned = false
local function prune(ids)
    for _, id in ipairs(ids) do
        pruned = math.max(pruned, tonumber(redis.call('ZSCORE', feed, id) or '0'))
        redis.call('ZREM', feed, id)
        redis.call('HDEL', entries, id)
        redis.call('ZREM', ended, id)
        is_pruned = true
    end
end
local function old(...) return redis.call('ZRANGEBYSCORE', ended, '-inf', string.format('%.0f', now - keep), ...) end
prune(old('LIMIT', 0, PRUNED_AT_ONCE))
local excess = math.min(redis.call('ZCARD', ended) - most, PRUNED_AT_ONCE)
if excess > 0 then prune(redis.call('ZRANGE', ended, 0, excess - 1)) end
if is_pruned then redis.call('HSET', entries, '#pruned', string.format('%.0f', pruned)) end
return 'OK'
