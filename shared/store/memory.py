"""How much memory Redis has left, so that new jobs are refused before those that run are starved.

At its limit Redis (policy `noeviction`) refuses every write: the steps of jobs that run would wait for records to
expire. New jobs are refused earlier, and what is left is for those that were accepted.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

from shared.store.connection import Refused, memory_full, translated

#: Share of maxmemory from which no new job is accepted.
RESERVE_FROM = 0.9
#: For how long one look is good (s).
_LOOK_S = 1.0


@dataclass(frozen=True)
class Memory:
    """What Redis holds and may hold (bytes); limit 0: no limit."""

    used: int
    limit: int


class RedisMemory:
    """The part of the store that knows how full Redis is. Safe to share between threads."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._latest = Memory(0, 0)
        self._look_at = 0.0

    def read(self) -> Memory:
        """What Redis holds now; zeros where this user may not ask."""
        with translated():
            try:
                info = self._redis.info("memory")
            except Refused:
                return Memory(0, 0)
        return Memory(int(info["used_memory"]), int(info.get("maxmemory", 0)))

    def raise_if_low(self) -> None:
        """Refuse what would take more.

        Raises:
            StoreUnavailable: less is left than jobs that run may need.
        """
        with self._lock:
            if time.monotonic() >= self._look_at:
                self._latest = self.read()
                self._look_at = time.monotonic() + _LOOK_S
            memory = self._latest
        if memory.limit and memory.used >= RESERVE_FROM * memory.limit:
            raise memory_full()
