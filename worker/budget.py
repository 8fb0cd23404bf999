"""How much a worker does at once, where its number of threads is the wrong measure.

Memory is bounded by pixels: eight small pictures at once are fine, eight of 64 megapixels are not. Webhooks are bounded
by hosts: one that hangs holds up one thread.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from worker.affinity import on_any_core


class PixelBudget:
    """At most so many pixels are worked on at once; a picture larger than all of it waits until it is alone.

    First come, first served: small pictures that would fit do not pass a large one, or it could wait for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Work on `pixels` inside the block; waits while there is no room."""
        turn = object()

        def may_begin() -> bool:
            return self._queue[0] is turn and (not self._used or self._used + pixels <= self._limit)

        with self._changed:
            self._queue.append(turn)
            try:
                self._changed.wait_for(may_begin)
                self._used += pixels
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()  # the next one's turn; it may fit beside this one
        try:
            with on_any_core(pixels):
                yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


class HostBudget:
    """At most `total` requests run at once, and only one to the same host."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._hosts: set[str] = set()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, host: str) -> Iterator[bool]:
        """Whether there is room; it is held inside the block."""
        with self._lock:
            has_room = len(self._hosts) < self._total and host not in self._hosts
            if has_room:
                self._hosts.add(host)
        try:
            yield has_room
        finally:
            if has_room:
                with self._lock:
                    self._hosts.discard(host)
