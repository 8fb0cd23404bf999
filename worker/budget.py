"""How much a worker does at once, where its number of threads is the wrong measure.

Memory is bounded by pixels: eight small pictures at once are fine, eight of 64 megapixels are not. Webhooks are bounded
by hosts: one that hangs holds up one thread.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """At most so many pixels are worked on at once; a picture larger than all of it waits until it is alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Work on `pixels` inside the block; waits while there is no room."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._limit)
            self._used += pixels
        try:
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
