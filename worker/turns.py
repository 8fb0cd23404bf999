"""Whose turn it is to call Gemini: so many at once in this worker, so many a minute in all workers together.

How many run at once is counted in the process: a count in Redis would have to outlive a killed worker's calls. Quotas
of the API are per minute and for all workers, so that is counted in Redis (shared/store/turns.py).
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import ExtractionBusy
from shared.settings import Settings
from shared.store import Store

_MINUTE_MS = 60_000
#: Longest pause before asking again (s): others may have given up their turn.
_PAUSE_S = 2.0


class Turns:
    """Safe for threads; shared by all calls of one worker."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._at_once = threading.BoundedSemaphore(settings.gemini_calls_at_once)
        self._per_minute = settings.gemini_calls_per_minute
        self._calls = store.call_turns

    @contextmanager
    def take(self, patience_s: float) -> Iterator[None]:
        """Make one call inside the block.

        Raises:
            ExtractionBusy: the turn did not come within `patience_s`.
            StoreUnavailable: Redis does not answer.
        """
        deadline = time.monotonic() + patience_s
        if not self._at_once.acquire(timeout=max(0.0, patience_s)):
            raise ExtractionBusy(f"no turn to call Gemini came within {patience_s:.0f} s (GEMINI_CALLS_AT_ONCE)")
        try:
            self._wait(deadline, patience_s)
            yield
        finally:
            self._at_once.release()

    def _wait(self, deadline: float, patience_s: float) -> None:
        while True:
            wait_ms = self._calls.take(self._per_minute, _MINUTE_MS)
            if wait_ms == 0:
                return
            # A turn that comes too late is not waited for: the caller can say so at once.
            if time.monotonic() + wait_ms / 1000 > deadline:
                raise ExtractionBusy(
                    f"no turn to call Gemini comes within {patience_s:.0f} s "
                    f"(GEMINI_CALLS_PER_MINUTE={self._per_minute})"
                )
            time.sleep(min(wait_ms / 1000, _PAUSE_S))
