-- Takes sessions off a node's list, unless they were written to again since they were looked at.
--
-- KEYS  1 the list: session -> number of the pipeline that wrote to it last
-- ARGV  for each session: its id, and that number as it was seen (empty: whatever it is)
for at = 1, #ARGV, 2 do
    local number = redis.call('ZSCORE', KEYS[1], ARGV[at])
    if number and (ARGV[at + 1] == '' or tonumber(number) == tonumber(ARGV[at + 1])) then
        redis.call('ZREM', KEYS[1], ARGV[at])
    end
end
