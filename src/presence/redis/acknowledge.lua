-- Removes sessions from a node's list when the log has acknowledged them, unless they were written to again since they
-- were read.
--
-- KEYS  1 the list: session -> number of the pipeline that wrote to it last
-- ARGV  for each session: its id, and the number it was read with (empty: any)
for at = 1, #ARGV, 2 do
    local number = redis.call('ZSCORE', KEYS[1], ARGV[at])
    if number and (ARGV[at + 1] == '' or tonumber(number) == tonumber(ARGV[at + 1])) then
        redis.call('ZREM', KEYS[1], ARGV[at])
    end
end
