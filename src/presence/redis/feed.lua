-- Reads what has changed in the index of sessions: each session once, with its last change.
--
-- KEYS  1 entries   2 feed, as in index.lua   (both in the same slot)
-- ARGV  1 the number of the last change that was read (0: everything follows)   2 how many to read at most
-- Reply the numbers of the last change and of the last forgotten one, and for each session: id, number, entry
for at, type in ipairs({ 'hash', 'zset' }) do
    -- Not ours: the next write replaces it.
    local found = redis.call('TYPE', KEYS[at]).ok
    if found ~= type and found ~= 'none' then return { '0', '0', {} } end
end
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local changes = {}
for at = 1, #found, 2 do
    changes[#changes + 1] = found[at]
    changes[#changes + 1] = string.format('%.0f', tonumber(found[at + 1]))
    changes[#changes + 1] = redis.call('HGET', KEYS[1], found[at]) or ''
end
local seqs = redis.call('HMGET', KEYS[1], '#seq', '#pruned')
return { seqs[1] or '0', seqs[2] or '0', changes }
