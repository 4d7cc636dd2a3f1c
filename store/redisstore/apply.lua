-- One Apply: look at everything, then write everything. Nothing after the first write can refuse or fail.
--
-- KEYS: the record of each operation; then, for each kind that may change an index, its five indexes.
-- ARGV: now, the number of operations, and for each of them its verb and what that verb needs; if something that is put
-- is due, a channel and the apps that it is for.
-- Numbers come as decimals of a fixed width, because Lua's own are doubles: see record.go.
local function less(a, b)
	local x, y = tonumber(a:sub(1, 10)), tonumber(b:sub(1, 10))
	if x ~= y then return x < y end
	return tonumber(a:sub(11)) < tonumber(b:sub(11))
end
local function minus(a, b)
	local high, low = a:sub(1, 10) - b:sub(1, 10), a:sub(11) - b:sub(11)
	if low < 0 then high, low = high - 1, low + 1e9 end
	return string.format('%010.0f%09.0f', high, low)
end
local never, call = '0000000000000000000', redis.call
local now, count, at = ARGV[1], tonumber(ARGV[2]), 3
local ops, answer = {}, nil
for i = 1, count do
	local key = KEYS[i]
	local head = redis.pcall('GETRANGE', key, 0, 81)
	if type(head) ~= 'string' then return '!' .. i end
	if head == '' then
		if call('EXISTS', key) == 1 then return '!' .. i end
		head = nil
	elseif #head ~= 82 or head:byte(1) ~= 49 or head:find('%D') then
		return '!' .. i
	end
	local verb = ARGV[at]
	local op = {verb = verb, head = head, want = ARGV[at + 1], at = at + 2}
	ops[i] = op
	local refused
	if verb == 's' or verb == 'i' then
		at = at + (verb == 's' and 2 or 9)
		local left, limit
		if head then
			left, limit = head:sub(18, 36), head:sub(56, 74)
		elseif verb == 'i' then
			left, limit = ARGV[op.at], ARGV[op.at + 1]:sub(20, 38)
		end
		if not left then
			refused = 2
		elseif limit ~= never and not less(now, limit) then
			refused = 3
		elseif left == never or less(left, op.want) then
			refused = 4
		else
			op.left = minus(left, op.want)
			if not answer or less(op.left, answer) then answer = op.left end
		end
	else
		at = at + (verb == 'c' and 2 or verb == 'd' and 4 or 9)
		if op.want == '*' then
			if verb == 'c' then refused = 1 end
		elseif head then
			if op.want ~= head:sub(2, 17) then refused = 1 end
		elseif op.want ~= '0000000000000000' or verb == 'd' then
			refused = 1
		end
	end
	if refused then
		if not head then return refused .. ' ' .. (i - 1) .. ' 0 0' end
		return refused .. ' ' .. (i - 1) .. ' ' .. head:sub(2, 17) .. ' ' .. head:sub(18, 36)
	end
end
for i = 1, count do
	local op, key = ops[i], KEYS[i]
	local head, verb, a = op.head, op.verb, op.at
	if verb == 'd' then
		if head then
			local k, id, kept = tonumber(ARGV[a]), ARGV[a + 1], head:sub(79, 82)
			if kept ~= '0000' or head:sub(37, 55) ~= never then
				local from = 82 + head:sub(75, 78)
				kept = kept .. (kept == '0000' and '' or call('GETRANGE', key, from, from + kept - 1))
			end
			call('DEL', key)
			call('ZREM', KEYS[k], id)
			if head:sub(79, 82) ~= '0000' then call('ZREM', KEYS[k + 1], kept .. id) end
			if head:sub(37, 55) ~= never then
				call('ZREM', KEYS[k + 2], id)
				call('ZREM', KEYS[k + 3], kept .. head:sub(37, 55) .. id)
			end
			if head:sub(56, 74) ~= never then call('ZREM', KEYS[k + 4], id) end
		end
	elseif head and (verb == 's' or verb == 'i') then
		if op.want ~= never then call('SETRANGE', key, 17, op.left) end
	elseif verb ~= 'c' and verb ~= 's' then
		local left, rest, k, id, app = ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 4]), ARGV[a + 5], ARGV[a + 6]
		local due, limit, version = rest:sub(1, 19), rest:sub(20, 38), '0000000000000001'
		if verb == 'i' then left = op.left end
		local olddue, oldlimit, oldapp = never, never, '0000'
		if head then
			version, left = string.format('%016.0f', head:sub(2, 17) + 1), head:sub(18, 36)
			olddue, oldlimit, oldapp = head:sub(37, 55), head:sub(56, 74), head:sub(79, 82)
			if oldapp ~= '0000' then
				local from = 82 + head:sub(75, 78)
				oldapp = oldapp .. call('GETRANGE', key, from, from + oldapp - 1)
			end
		end
		call('SET', key, '1' .. version .. left .. rest)
		if not head then call('ZADD', KEYS[k], 0, id) end
		if app ~= oldapp then
			if oldapp ~= '0000' then call('ZREM', KEYS[k + 1], oldapp .. id) end
			if app ~= '0000' then call('ZADD', KEYS[k + 1], 0, app .. id) end
		end
		if due ~= olddue or app ~= oldapp then
			if olddue ~= never then
				call('ZREM', KEYS[k + 3], oldapp .. olddue .. id)
				if due == never then call('ZREM', KEYS[k + 2], id) end
			end
			if due ~= never then
				call('ZADD', KEYS[k + 2], ARGV[a + 2], id)
				call('ZADD', KEYS[k + 3], 0, app .. due .. id)
			end
		end
		if limit ~= oldlimit then
			if limit ~= never then
				call('ZADD', KEYS[k + 4], ARGV[a + 3], id)
			else
				call('ZREM', KEYS[k + 4], id)
			end
		end
	end
end
-- Who may write but not publish has written all the same.
for i = at + 1, #ARGV do redis.pcall('PUBLISH', ARGV[at], ARGV[i]) end
return '0 0 0 ' .. (answer or 0)
