-- The earliest due records of a bucket, leaving apps out: from app to app, never through what is left out.
-- KEYS: the index by app and due. ARGV: the first due that is too late, how many, the apps to leave out.
local function less(a, b)
	local x, y = tonumber(a:sub(1, 10)), tonumber(b:sub(1, 10))
	if x ~= y then return x < y end
	x, y = tonumber(a:sub(11, 19)), tonumber(b:sub(11, 19))
	if x ~= y then return x < y end
	return a < b
end
local late, count, without = ARGV[1], tonumber(ARGV[2]), {}
for i = 3, #ARGV do without[ARGV[i]] = true end
local found, from = {}, '-'
while true do
	local first = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, 1)[1]
	if not first then break end
	local app = first:sub(1, 4 + first:sub(1, 4))
	if not without[app] then
		for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[1], '[' .. app, '(' .. app .. late, 'LIMIT', 0, count)) do
			found[#found + 1] = member:sub(#app + 1)
		end
	end
	from = '(' .. app .. '~'
end
table.sort(found, less)
for i = #found, count + 1, -1 do found[i] = nil end
return found
