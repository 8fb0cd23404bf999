"""Steps that kill their worker: found out, kept away from others, given up.

Whoever dies with eight steps in hand cannot say which of them it was, and all eight come back together. So every open
job that was under way is counted once for each death (shared/store/underway.py), and a job that was counted runs
*alone*: no other step runs beside it. A harmless neighbour is therefore counted once, runs alone and ends; the one that
kills is counted again each time, until it is given up. Without the isolation a poisonous job would take all of its
neighbours along, since they would be beside it every time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from shared.errors import StoreUnavailable, WorkerCrashed
from shared.store import Store
from worker.patience import patiently

log = structlog.get_logger(__name__)


class CrashGuard:
    """Lets the steps of one worker run side by side, those of suspected jobs alone. Safe for threads."""

    def __init__(self, store: Store, worker_name: str, max_deliveries: int) -> None:
        self._under_way, self._worker, self._limit = store.under_way, worker_name, max_deliveries
        self._turns = _Turns()
        # Steps that run, and how often Redis was told so, by job: the cells of a job are one note, not four.
        self._in_hand: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def step(self, job_id: str) -> Iterator[None]:
        """Run one step of a job inside the block.

        Raises:
            WorkerCrashed: the job was under way when MAX_DELIVERIES workers died; the block is not run.
            StoreUnavailable: Redis was away for too long.
        """
        with self._turns.beside_others(), self._in_hand_of(job_id) as is_noted:
            crashes = 0 if is_noted else self._begin(job_id)
            if not crashes:
                yield
                return
        if crashes >= self._limit:
            raise WorkerCrashed(f"{crashes} workers died while they worked on this job (MAX_DELIVERIES)")
        with self._turns.alone(), self._in_hand_of(job_id):
            log.warning("step_alone", crashes=crashes)
            self._begin(job_id, is_alone=True)
            yield

    def _begin(self, job_id: str, *, is_alone: bool = False) -> int:
        """Note the job as under way, unless it is suspected and not alone; returns its crashes."""
        crashes = patiently(lambda: self._under_way.begin(self._worker, job_id, is_alone=is_alone))
        if not crashes or is_alone:
            with self._lock:
                self._in_hand[job_id][1] += 1
        return crashes

    @contextmanager
    def _in_hand_of(self, job_id: str) -> Iterator[bool]:
        """Count the step inside the block. Yields whether its job is noted already; the last step out ends that."""
        with self._lock:
            steps = self._in_hand.setdefault(job_id, [0, 0])
            steps[0] += 1
            is_noted = steps[1] > 0
        try:
            yield is_noted
        finally:
            with self._lock:
                steps[0] -= 1
                noted = 0 if steps[0] else steps[1]
                if not steps[0]:
                    del self._in_hand[job_id]
            if noted:
                # Otherwise the next crash counts this job although it is done with: a suspicion, no harm.
                with suppress(StoreUnavailable):
                    patiently(lambda: self._under_way.end(self._worker, job_id, noted))


class _Turns:
    """Many beside each other, or one alone; who wants to be alone goes before those that come later."""

    def __init__(self) -> None:
        self._running = 0
        self._waiting_alone = 0
        self._is_one_alone = False
        self._changed = threading.Condition()

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_one_alone and not self._waiting_alone)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += 1
            try:
                self._changed.wait_for(lambda: not self._is_one_alone and not self._running)
                self._is_one_alone = True
            finally:
                self._waiting_alone -= 1
        try:
            yield
        finally:
            with self._changed:
                self._is_one_alone = False
                self._changed.notify_all()
