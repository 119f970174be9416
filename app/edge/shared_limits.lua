-- Decides on requests one after another, each all or nothing, over windows of one-second buckets.
--
-- KEYS      one for each owner of windows (a key, a client, an address), each a string of its own
-- ARGV[1]   msgpack: {now, keep_s, sets, decisions}; `now` in seconds, 0 = by this server's clock
--   set       windows: {owner (index into KEYS), kind, limit} one after another, flat
--   decision  {index into sets, asks, adds, backs}
--   asks      of each kind what must fit for the decision to pass; -1 = whatever; false = it fails
--   adds      of each kind what is counted if it passes
--   backs     of each kind what is taken back if it fails
-- returns   msgpack: {of each set: {used of each window}, of each set: {reset_s of each window},
--            of each decision: {} if it passed, else {wait_s of each window}}, as of the end
--
-- An owner's windows are read once and written once a call, however many decisions it is in. They
-- are kept as {kind = {second, amount, second, amount, ...}}, oldest first, and expire by themselves.
local now, keep_s, sets, decisions = unpack(cmsgpack.unpack(ARGV[1]))
if now == 0 then now = tonumber(redis.call('TIME')[1]) end
local WINDOW_S = 60

local function open(owner)
  local stored = redis.call('GET', KEYS[owner])
  local windows = {}
  for kind, buckets in pairs(stored and cmsgpack.unpack(stored) or {}) do
    local window = {used = 0}
    for i = 1, #buckets, 2 do
      -- A clock that went back must not keep a bucket for longer than a minute.
      local second, amount = math.min(buckets[i], now), buckets[i + 1]
      if second > now - WINDOW_S and amount > 0 then
        window[#window + 1], window[#window + 2] = second, amount
        window.used = window.used + amount
      end
    end
    windows[kind] = window
  end
  return windows
end

local owners = {}
local function window_of(owner, kind)
  owners[owner] = owners[owner] or open(owner)
  local windows = owners[owner]
  windows[kind] = windows[kind] or {used = 0}
  return windows[kind]
end

-- A set as three lists, since most calls have many decisions on few sets.
local function laid_out(flat)
  local windows, kinds, limits = {}, {}, {}
  for i = 1, #flat, 3 do
    local n = #windows + 1
    windows[n], kinds[n], limits[n] = window_of(flat[i], flat[i + 1]), flat[i + 1], flat[i + 2]
  end
  return {windows, kinds, limits}
end

local function add(window, amount)
  if amount == 0 then return end
  if window[#window - 1] ~= now then
    window[#window + 1], window[#window + 2] = now, 0
  end
  window[#window] = window[#window] + amount
  window.used = window.used + amount
end

-- Uncounts what was counted last, and never more than was.
local function take_back(window, amount)
  for i = #window, 2, -2 do
    local taken = math.min(amount, window[i])
    window[i] = window[i] - taken
    window.used = window.used - taken
    amount = amount - taken
    if amount == 0 then return end
  end
end

local function wait_s(window, ask, limit)
  local excess, second = window.used + ask - limit, now
  if excess <= 0 then return 0 end
  for i = 1, #window, 2 do
    excess, second = excess - window[i + 1], window[i]
    if excess <= 0 then break end
  end
  return second + WINDOW_S - now
end

for n, flat in ipairs(sets) do sets[n] = laid_out(flat) end

local PASSED, outcomes = {}, {}
for n, decision in ipairs(decisions) do
  local index, asks, adds, backs = unpack(decision)
  local windows, kinds, limits = unpack(sets[index])
  local passes = asks and true or false
  for i, window in ipairs(windows) do
    if not passes then break end
    local ask = asks[kinds[i]]
    if ask >= 0 and window.used + ask > limits[i] then passes = false end
  end
  outcomes[n] = PASSED
  if passes then
    for i, window in ipairs(windows) do add(window, adds[kinds[i]]) end
  else
    local waits = {}
    for i, window in ipairs(windows) do
      local ask = asks and asks[kinds[i]] or -1
      waits[i] = ask < 0 and 0 or wait_s(window, ask, limits[i])
    end
    for i, window in ipairs(windows) do take_back(window, backs[kinds[i]]) end
    outcomes[n] = waits
  end
end

local used, resets_s = {}, {}
for n, set in ipairs(sets) do
  used[n], resets_s[n] = {}, {}
  for i, window in ipairs(set[1]) do
    used[n][i], resets_s[n][i] = window.used, (window[1] or now) + WINDOW_S - now
  end
end

for owner, windows in pairs(owners) do
  local stored = {}
  for kind, window in pairs(windows) do
    window.used = nil
    stored[kind] = window
  end
  redis.call('SET', KEYS[owner], cmsgpack.pack(stored), 'EX', keep_s)
end
return cmsgpack.pack({used, resets_s, outcomes})
