"""The Lua scripts that change a job. Each is one step: nothing can come between its check and its change."""

# One script makes every change of a job, because check, change and event must be one step: two workers that finish the
# same job at the same time must not both see "not final yet".
# A webhook's delivery is written in the same step: no kill comes between an event and the promise to tell it.
# The same for the counters of /metrics: a task that runs twice counts once.
# And for the result cache: a finished cell is recorded and can be found again in one command.
# KEYS: job, events, queued, deadlines, webhooks, due, open, metrics, ended, and the cell in the result cache if it is
# to be found there. ARGV: ttl, events kept, job id, allowed states (",a,b,"), cell field or "", event, what its open
# cells become (of a job that ends) or "", counter of this change or "", counter of each open cell that ends or "", what
# the result cache keeps, for how long (s), then field, value pairs.
# Returns 1 changed, 0 refused, -1 no such job.
CHANGE = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return -1 end
if not string.find(ARGV[4], ',' .. status .. ',', 1, true) then return 0 end
local function is_done(cell)
  local state = cjson.decode(cell)['status']
  return state == 'succeeded' or state == 'failed'
end
if ARGV[5] ~= '' then
  local old = redis.call('HGET', KEYS[1], ARGV[5])
  if old and (old == ARGV[13] or is_done(old)) then return 0 end
end
for i = 12, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
if KEYS[10] then redis.call('SET', KEYS[10], ARGV[10], 'EX', ARGV[11]) end
if ARGV[8] ~= '' then redis.call('HINCRBY', KEYS[8], ARGV[8], 1) end
if ARGV[7] ~= '' then
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 5) == 'cell:' and not is_done(fields[i + 1]) then
      redis.call('HSET', KEYS[1], fields[i], ARGV[7])
      redis.call('HINCRBY', KEYS[8], ARGV[9], 1)
    end
  end
  redis.call('ZREM', KEYS[4], ARGV[3])
  redis.call('ZREM', KEYS[7], ARGV[3])
  redis.call('XADD', KEYS[9], '*', 'job_id', ARGV[3])
  redis.call('EXPIRE', KEYS[9], 60)  -- 4 KB, and who comes later looks at the record first
else
  redis.call('ZADD', KEYS[7], redis.call('TIME')[1], ARGV[3])
end
local event_id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'data', ARGV[6])
local wanted = redis.call('HGET', KEYS[1], 'hook:events')
if wanted then
  local event, name = cjson.decode(ARGV[6]), ''
  if event.type == 'cell' and (event.status == 'succeeded' or event.status == 'failed') then name = 'cell.done' end
  if event.type == 'status' and event.status == 'preparing' then name = 'job.started' end
  if event.final then name = 'job.' .. event.status end
  if string.find(wanted, ',' .. name .. ',', 1, true) then
    local cell = event.cell and ('"' .. event.cell .. '"') or 'null'
    redis.call('HSET', KEYS[5], event_id, string.format(
      '{"type":"%s","cell":%s,"at_ms":%s,"state":"pending","attempts":[]}', name, cell, event_id:match('^%d+')))
    redis.call('ZADD', KEYS[6], 0, ARGV[3] .. ' ' .. event_id)
  end
  redis.call('EXPIRE', KEYS[5], ARGV[1])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
local claim = redis.call('HGET', KEYS[1], 'mark:claim')
if claim then redis.call('EXPIRE', claim, ARGV[1]) end
if redis.call('HGET', KEYS[1], 'status') ~= 'queued' then redis.call('ZREM', KEYS[3], ARGV[3]) end
return 1
"""

# CHANGE, for a step that needs the job's record too. Returns the record as it was before the change, made or refused;
# nothing when there is no such job.
BEGIN = f"""
local record = redis.call('HGETALL', KEYS[1])
local function change() {CHANGE} end
change()
return record
"""

# Count and create in one step, or a burst would overshoot the limit; and with them the claim, or two requests with one
# key could each make a job.
# KEYS: job, events, queued, deadlines, listing, listing of the client id, claim or "", open. ARGV: ttl, job id, created
# (us), deadline (s) or "", most queued jobs, number of events, the events, then field, value pairs.
# Returns 1 created, 0 the queue is full, -1 the claim is another's.
CREATE = """
local ttl, created = tonumber(ARGV[1]), tonumber(ARGV[3])
local function before(seconds) return string.format('(%.0f', created - seconds * 1000000) end
-- Sent again, because the first reply was lost: its events are told once, and its own place is no reason to refuse it.
if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end
-- Less those whose record expired before any worker came. Nothing is changed before the first HSET: a Redis at its
-- memory limit refuses a script at its first command that could grow, and lets one that has written finish.
if redis.call('ZCOUNT', KEYS[3], before(ttl), '+inf') >= tonumber(ARGV[5]) then return 0 end
local first = 7 + tonumber(ARGV[6])
if KEYS[7] ~= '' then
  if redis.call('HGET', KEYS[7], 'job_id') ~= ARGV[2] then return -1 end
  redis.call('HSET', KEYS[7], 'made', '1')
  redis.call('EXPIRE', KEYS[7], ARGV[1])
  redis.call('HSET', KEYS[1], 'mark:claim', KEYS[7])
end
for i = first, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = 7, first - 1 do redis.call('XADD', KEYS[2], '*', 'data', ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', before(ttl))
redis.call('ZADD', KEYS[3], created, ARGV[2])
redis.call('ZADD', KEYS[8], redis.call('TIME')[1], ARGV[2])
if ARGV[4] ~= '' then redis.call('ZADD', KEYS[4], ARGV[4], ARGV[2]) end
for i = 5, 6 do
  redis.call('ZADD', KEYS[i], created, ARGV[2])
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', before(2 * ttl))
  redis.call('EXPIRE', KEYS[i], 2 * ttl)
end
return 1
"""

# KEYS: job. ARGV: field, value. Sets the field of an existing job only: HSET alone would revive an expired job as a
# hash that never expires.
MARK = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""
