"""A small duty done again and again beside the work: heartbeat, sweeper, webhook clock."""

import threading
from types import TracebackType
from typing import Self

#: How long closing waits for a duty in mid-step (s).
_JOIN_S = 10.0


class Ticker:
    """A thread that calls `tick` every so often, from the start of a `with` block to its end."""

    def __init__(self, name: str, every_s: float) -> None:
        """Name the thread; the first tick comes `every_s` after the block has begun."""
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=_JOIN_S)

    def tick(self) -> None:
        """One step of the duty. What it raises ends the thread, so it catches what it can live with."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.tick()
