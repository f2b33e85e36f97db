"""What runs inside Redis, and how its keys are named. The clock is the server's, since those of processes differ.

A window is one hash: `b` the present part of time, `t` the sum, and the ring of sums under `0` to `60`. Amounts are
whole millionths, and money whole billionths: text of a float would lose digits. `%.0f` is exact below 2^53.

A budget is a hash (`s` spent, `h` held, `e` end of the period, `#id` a hold's amount), a sorted set of its holds by
their end, and one of the holds that were settled within the last minute: a settle that is sent again counts once.
"""

from __future__ import annotations

from typing import Final

from tianji_mw.counters.base import BUCKETS
from tianji_mw.redis.scripts import Script
from tianji_mw.redis.slots import tagged

#: Amounts in windows are counted in these.
MICRO: Final = 1_000_000

_CLOCK: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local function text(n) return string.format('%.0f', n + 0) end  -- not "-0", which is no number to Redis
"""

_WINDOW: Final = (
    _CLOCK
    + f"local BUCKETS = {BUCKETS}\n"
    + """
local SLOTS = BUCKETS + 1

-- The sum and the present part of time, after what has left the window is forgotten.
local function present(key, width)
  local bucket = math.floor(now / width)
  local head = redis.call('HMGET', key, 'b', 't')
  local last, total = tonumber(head[1]), tonumber(head[2])
  if not last then return 0, bucket end
  if math.abs(bucket - last) >= SLOTS then  -- all of it is over, or the clock was set back
    redis.call('DEL', key)
    return 0, bucket
  end
  if bucket <= last then return total, last end
  local gone = {}
  for one = last + 1, bucket do gone[#gone + 1] = text(one % SLOTS) end
  for _, old in ipairs(redis.call('HMGET', key, unpack(gone))) do
    if old then total = total - tonumber(old) end
  end
  redis.call('HDEL', key, unpack(gone))
  redis.call('HSET', key, 'b', text(bucket), 't', text(total))
  return total, bucket
end

local function add(key, width, bucket, one, amount, total)
  local sum = redis.call('HINCRBY', key, text(one % SLOTS), text(amount))
  redis.call('HSET', key, 'b', text(bucket), 't', text(total))
  if sum == amount then  -- the first of its part: the others are over no later
    redis.call('PEXPIRE', key, text(math.ceil(width * SLOTS / 1000) + 1000))
  end
end

-- Pairs of how long a part still counts (in us), and its sum; the oldest first.
local function parts(key, width, bucket)
  local flat, ring, found = redis.call('HGETALL', key), {}, {}
  for i = 1, #flat, 2 do ring[flat[i]] = tonumber(flat[i + 1]) end
  for one = bucket - BUCKETS, bucket do
    local sum = ring[text(one % SLOTS)]
    if sum and sum ~= 0 then
      found[#found + 1] = (one + SLOTS) * width - now
      found[#found + 1] = sum
    end
  end
  return found
end
"""
)

#: ARGV: whether the parts are wanted, then limit, amount and width (in us) of each key. The answer: which key refused
#: (0: none), its wait in us, the sums of all, and their parts.
TAKE: Final = Script(
    _WINDOW
    + """
local which, longest, sums, buckets, after = 0, 0, {}, {}, {}
for i, key in ipairs(KEYS) do
  local limit, amount, width = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  sums[i], buckets[i] = present(key, width)
  after[key] = (after[key] or sums[i]) + amount
  local need = after[key] - limit
  if need > 0 then
    local wait, ring = width * BUCKETS, parts(key, width, buckets[i])
    for j = 1, #ring, 2 do
      need = need - ring[j + 1]
      if need <= 0 then wait = ring[j] break end
    end
    if wait > longest or which == 0 then which, longest = i, wait end
  end
end
if which == 0 then
  for i, key in ipairs(KEYS) do
    local amount, width = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
    sums[i] = after[key]
    add(key, width, buckets[i], buckets[i], amount, after[key])
  end
end
local rings = {}
if ARGV[1] == '1' then
  for i, key in ipairs(KEYS) do rings[i] = parts(key, tonumber(ARGV[3 * i + 1]), buckets[i]) end
end
return {which, longest, sums, rings}
"""
)

#: ARGV: the width (in us), then pairs of how long ago (in us) and amount. What is negative is taken out of its part of
#: time, then of the older ones, then of the newer ones. The answer: the sum.
ADD: Final = Script(
    _WINDOW
    + """
local key, width = KEYS[1], tonumber(ARGV[1])
local total, bucket = present(key, width)
for i = 2, #ARGV, 2 do
  local one, amount = math.min(bucket, math.floor((now - tonumber(ARGV[i])) / width)), tonumber(ARGV[i + 1])
  local oldest = bucket - BUCKETS
  if one >= oldest and amount >= 0 then
    total = total + amount
    add(key, width, bucket, one, amount, total)
  elseif one >= oldest then
    local order = {}
    for old = one, oldest, -1 do order[#order + 1] = old end
    for new = one + 1, bucket do order[#order + 1] = new end
    for _, place in ipairs(order) do
      local part = math.min(tonumber(redis.call('HGET', key, text(place % SLOTS)) or 0), -amount)
      if part > 0 then
        amount, total = amount + part, total - part
        add(key, width, bucket, place, -part, total)
      end
      if amount >= 0 then break end
    end
  end
end
return total
"""
)

#: ARGV: the width (in us). The answer: the sum.
USED: Final = Script(_WINDOW + "return (present(KEYS[1], tonumber(ARGV[1])))")

_BUDGET: Final = (
    _CLOCK
    + """
local purse, holds = KEYS[1], KEYS[2]

local function release(id)
  local amount = redis.call('HGET', purse, '#' .. id)
  if amount then
    redis.call('HDEL', purse, '#' .. id)
    redis.call('ZREM', holds, id)
    redis.call('HINCRBY', purse, 'h', text(-tonumber(amount)))
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', holds, '-inf', text(now), 'LIMIT', 0, 1000)) do release(id) end
local ends = tonumber(redis.call('HGET', purse, 'e'))
if ends and ends <= now then
  redis.call('HDEL', purse, 's', 'e')
  ends = nil
end

local function begin(period)
  if not ends then
    ends = now + period
    redis.call('HSET', purse, 'e', text(ends))
  end
end

local function keep()
  local last = redis.call('ZREVRANGE', holds, 0, 0, 'WITHSCORES')
  local ttl = text(math.ceil((math.max(ends or now, tonumber(last[2]) or now) - now) / 1000) + 1000)
  redis.call('PEXPIRE', purse, ttl)
  redis.call('PEXPIRE', holds, ttl)
end

local function state(refused)
  local found = redis.call('HMGET', purse, 's', 'h')
  local left = ends and ends - now or 0
  return {refused, tonumber(found[1]) or 0, tonumber(found[2]) or 0, left, redis.call('ZCARD', holds)}
end
"""
)

#: KEYS: hash, holds, settled. ARGV: id, limit, amount, period and ttl (in us), and 1 to hold whatever the limit says.
#: The answer of all three: whether it is refused, spent, held, how long the period lasts (in us), and how many hold.
HOLD: Final = Script(
    _BUDGET
    + """
local id, limit, amount = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('HEXISTS', purse, '#' .. id) == 1 then return state(0) end
local found = state(0)
local alone = found[5] == 0 and found[2] < limit
if ARGV[6] ~= '1' and found[2] + found[3] + amount > limit and not alone then return state(1) end
begin(tonumber(ARGV[4]))
redis.call('HSET', purse, '#' .. id, text(amount))
redis.call('HINCRBY', purse, 'h', text(amount))
redis.call('ZADD', holds, text(now + tonumber(ARGV[5])), id)
redis.call('ZREM', KEYS[3], id)
keep()
return state(0)
"""
)

#: ARGV: id, amount, period (in us).
SETTLE: Final = Script(
    _BUDGET
    + """
local id, amount, settled = ARGV[1], tonumber(ARGV[2]), KEYS[3]
release(id)
if amount ~= 0 and not redis.call('ZSCORE', settled, id) then
  begin(tonumber(ARGV[3]))
  local spent = tonumber(redis.call('HGET', purse, 's') or 0) + amount
  redis.call('HSET', purse, 's', text(math.max(0, spent)))
  redis.call('ZREMRANGEBYSCORE', settled, '-inf', text(now - 60000000))
  redis.call('ZADD', settled, text(now), id)
  redis.call('PEXPIRE', settled, 61000)
end
keep()
return state(0)
"""
)

#: No ARGV.
SPENT: Final = Script(_BUDGET + "return state(0)")


def key_of(prefix: str, group: str, *parts: str) -> str:
    """The name of a key, in the slot of its group.

    >>> key_of("tianji", "a{b}", "w", "rpm")
    'tianji:{a%7Bb%7D}:w:rpm'
    """
    tag = group.replace("%", "%25").replace("{", "%7B").replace("}", "%7D") or "%"
    return f"{prefix}:{tagged(tag, *parts)}"
