-- Several records of one bucket at one moment. KEYS: the records. With ARGV[1], an index that comes last in KEYS: what
-- it lists and is not there is damage. (ARGV: the member of each record in it.)
local out, count = {}, #KEYS - (ARGV[1] and 1 or 0)
for i = 1, count do
	local value = redis.pcall('GET', KEYS[i])
	if type(value) == 'table' then
		value = ''
	elseif not value and ARGV[i] and redis.call('ZSCORE', KEYS[count + 1], ARGV[i]) then
		value = ''
	end
	out[i] = value
end
return out
