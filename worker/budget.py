"""Memory bounded by pixels, not by threads: eight small pictures at once are fine, eight of 64 megapixels are not."""

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
