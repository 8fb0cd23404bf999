"""Threads that take turns share one core; those with pixels in hand may use all of them.

Only one thread of a process runs Python at a time. On several cores, every answer from Redis wakes a thread on another
one, which then waits for the interpreter's lock: where cores are few or virtual, that takes more time than the work
itself (docs/performance.md). Kept on one core, a thread's turn costs a switch and no more. Work on pixels lets go of
the lock for milliseconds and runs beside the rest, on whatever core is free.
"""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import cv2
import numpy as np
import structlog

log = structlog.get_logger(__name__)

#: Work on so many pixels or fewer is done before another core has woken up.
SMALL_PX = 96 * 96
#: Side of a picture that OpenCV starts its threads for, in pixels.
_WARM_UP_SIDE = 1024

_everywhere: frozenset[int] = frozenset()
_home: frozenset[int] = frozenset()
_turn = threading.Lock()


def share_a_core(core: str = "auto") -> None:
    """Keep this thread, and those that it starts from now on, on one core outside of `on_any_core`.

    Does nothing where a process cannot choose its cores, or has only one.

    Args:
        core: WORKER_CORE. auto: one of those that the process may use, by chance, so that several workers spread; a
            number: that one; any: all of them.
    """
    global _everywhere, _home
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if core == "any" or len(cores) < 2:
        return
    if core != "auto" and int(core) not in cores:
        log.warning("core_not_available", core=int(core), available=cores)
        core = "auto"
    # OpenCV's threads stay where the thread may run that first needs them.
    plane = np.zeros((_WARM_UP_SIDE, _WARM_UP_SIDE), np.uint8)
    cv2.resize(plane, (2 * _WARM_UP_SIDE, 2 * _WARM_UP_SIDE))
    _everywhere = frozenset(cores)
    _home = frozenset({random.choice(cores) if core == "auto" else int(core)})  # noqa: S311 - no secret
    os.sched_setaffinity(0, _home)


@contextmanager
def on_any_core(pixels: int) -> Iterator[None]:
    """Work on so many pixels inside the block, on any core if that is worth it."""
    if pixels <= SMALL_PX or not _home or os.sched_getaffinity(0) != _home:
        yield
        return
    os.sched_setaffinity(0, _everywhere)
    try:
        yield
    finally:
        os.sched_setaffinity(0, _home)


def one_at_a_time(pixels: int) -> AbstractContextManager[object]:
    """A block of many short steps on so many pixels; blocks on few pixels wait for each other.

    NumPy and OpenCV let go of the interpreter's lock in each of some hundred steps of microseconds. Side by side, small
    pictures would wake each other at every one of them, and get nothing done meanwhile.
    """
    return _turn if pixels <= SMALL_PX else nullcontext()
