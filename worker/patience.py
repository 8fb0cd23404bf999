"""Waiting for a Redis that is away."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from shared.errors import StoreUnavailable

log = structlog.get_logger(__name__)

#: How long a step waits for a Redis that is away (s), and how often it looks. A step that raises into its chord would
#: break the canvas; its work is done or can be done again, so patience costs nothing.
_REDIS_PATIENCE_S = 300.0
_REDIS_RETRY_S = 1.0

T = TypeVar("T")


def patiently(step: Callable[[], T], *, patience_s: float = _REDIS_PATIENCE_S, pause_s: float = _REDIS_RETRY_S) -> T:
    """Run a step, again and again while Redis is away.

    Raises:
        StoreUnavailable: Redis was away for longer than `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return step()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            log.warning("redis_away", retry_s=pause_s)
            time.sleep(pause_s)
