"""How long, and in which steps, something is tried again."""

import random
import time
from collections.abc import Callable

from client.errors import CutoutError

#: First pause between two tries (s); it doubles up to the second number, and part of it is left to chance.
_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
#: Even a service that says "try again in 0 s" gets this long (s).
_SHORTEST_PAUSE_S = 0.1


class Patience:
    """The time that one operation may spend on trying again."""

    def __init__(self, limit_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._deadline = time.monotonic() + limit_s
        self._step_s = _PAUSE_S

    def pause(self, error: CutoutError) -> None:
        """Return when it is time for the next try: never sooner than the service asked for.

        Raises:
            CutoutError: `error` itself, at once, when that would be after the time is over.
        """
        if error.retry_after_s is None:
            wait_s = self._step_s * random.uniform(0.5, 1)  # noqa: S311 - spreads clients, guards nothing
            self._step_s = min(self._step_s * 2, _LONGEST_PAUSE_S)
        else:
            wait_s = max(error.retry_after_s, _SHORTEST_PAUSE_S)
        if time.monotonic() + wait_s > self._deadline:
            raise error
        self._sleep(wait_s)
