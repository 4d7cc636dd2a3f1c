-- Remove records of a bucket, each only if its time is still up.
-- KEYS: the five indexes of the kind, the records. ARGV: before, the ID of each record.
local function less(a, b)
	local x, y = tonumber(a:sub(1, 10)), tonumber(b:sub(1, 10))
	if x ~= y then return x < y end
	return tonumber(a:sub(11)) < tonumber(b:sub(11))
end
local never, call, out, removed = '0000000000000000000', redis.call, {}, 0
for i = 6, #KEYS do
	local key, id = KEYS[i], ARGV[i - 4]
	local head = redis.pcall('GETRANGE', key, 0, 81)
	if head == '' then
		if call('EXISTS', key) == 1 or call('ZSCORE', KEYS[5], id) then out[#out + 1] = i - 6 end
	elseif type(head) ~= 'string' or #head ~= 82 or head:byte(1) ~= 49 or head:find('%D') then
		out[#out + 1] = i - 6
	else
		local due, limit, olen, alen = head:sub(37, 55), head:sub(56, 74), tonumber(head:sub(75, 78)), tonumber(head:sub(79, 82))
		if limit ~= never and less(limit, ARGV[1]) then
			local app = head:sub(79, 82) .. (alen == 0 and '' or call('GETRANGE', key, 82 + olen, 81 + olen + alen))
			call('DEL', key)
			call('ZREM', KEYS[1], id)
			if alen ~= 0 then call('ZREM', KEYS[2], app .. id) end
			if due ~= never then
				call('ZREM', KEYS[3], id)
				call('ZREM', KEYS[4], app .. due .. id)
			end
			call('ZREM', KEYS[5], id)
			removed = removed + 1
		elseif limit == never and call('ZSCORE', KEYS[5], id) then
			out[#out + 1] = i - 6
		end
	end
end
table.insert(out, 1, removed)
return out
