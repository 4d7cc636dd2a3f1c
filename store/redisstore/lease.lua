-- Lease records of a bucket, each only if it is still due and still of those that were asked for.
-- KEYS: the index by due, the index by app and due, the records. ARGV: due by and until, each also as a score, an owner
-- and an app (or nothing), the number of apps to leave out, these, the ID of each record.
local function less(a, b)
	local x, y = tonumber(a:sub(1, 10)), tonumber(b:sub(1, 10))
	if x ~= y then return x < y end
	return tonumber(a:sub(11)) < tonumber(b:sub(11))
end
local never, call = '0000000000000000000', redis.call
-- The middle between by and what is later.
local function middle(by, limit)
	local high, low = limit:sub(1, 10) - by:sub(1, 10), limit:sub(11) - by:sub(11)
	if low < 0 then high, low = high - 1, low + 1e9 end
	local odd = high % 2
	high, low = (high - odd) / 2, math.ceil((odd * 1e9 + low) / 2)
	local h, l = by:sub(1, 10) + high, by:sub(11) + low
	if l >= 1e9 then h, l = h + 1, l - 1e9 end
	return string.format('%010.0f%09.0f', h, l), string.format('%.0f', ARGV[2] + high * 1e9 + low)
end
local by, owner, only, out = ARGV[1], ARGV[5], ARGV[6], {}
local without, at = {}, 7 + ARGV[7]
for i = 8, at do without[ARGV[i]] = true end
for i = 3, #KEYS do
	local key, id = KEYS[i], ARGV[at + i - 2]
	local head = redis.pcall('GETRANGE', key, 0, 81)
	out[i - 2] = ''
	if head == '' then
		if call('EXISTS', key) == 1 or call('ZSCORE', KEYS[1], id) then out[i - 2] = '!' end
	elseif type(head) ~= 'string' or #head ~= 82 or head:byte(1) ~= 49 or head:find('%D') then
		out[i - 2] = '!'
	else
		local due, olen, alen = head:sub(37, 55), tonumber(head:sub(75, 78)), tonumber(head:sub(79, 82))
		if due ~= never and not less(by, due) then
			local names = olen + alen == 0 and '' or call('GETRANGE', key, 82, 81 + olen + alen)
			local app = head:sub(79, 82) .. names:sub(olen + 1)
			if (owner == '' or owner == names:sub(1, olen)) and (only == '' or only == app) and not without[app] then
				local till, score, limit = ARGV[3], ARGV[4], head:sub(56, 74)
				if less(by, limit) then
					local sooner, s = middle(by, limit)
					if less(sooner, till) then till, score = sooner, s end
				end
				call('SETRANGE', key, 1, string.format('%016.0f', head:sub(2, 17) + 1) .. head:sub(18, 36) .. till)
				call('ZADD', KEYS[1], score, id)
				call('ZREM', KEYS[2], app .. due .. id)
				call('ZADD', KEYS[2], 0, app .. till .. id)
				out[i - 2] = due .. call('GET', key)
			end
		end
	end
end
return out
