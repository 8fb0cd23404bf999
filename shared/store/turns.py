"""How many calls to Gemini all workers together have begun in the last minute, by the clock of Redis."""

import uuid
from typing import Any

from shared.store.connection import translated

_KEY = "extraction:calls"

# KEYS: calls. ARGV: limit, name of this call, window (ms). Notes the call and returns 0, or returns the ms until the
# oldest call in the window leaves it.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('ZADD', KEYS[1], now, ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 0
end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return math.max(1, oldest[2] + ARGV[3] - now)
"""


class CallTurns:
    """The part of the store that counts calls to Gemini."""

    def __init__(self, redis: Any) -> None:
        self._take = redis.register_script(_TAKE)

    def take(self, limit: int, window_ms: int) -> int:
        """Note one more call if fewer than `limit` lie in the window.

        Returns:
            0 when it was noted, else the time (ms) until the oldest call leaves the window.
        """
        with translated():
            return int(self._take(keys=[_KEY], args=[limit, uuid.uuid4().hex, window_ms]))
