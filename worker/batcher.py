"""Items in, batches out: what waits for the device at the same time is computed together.

    submit(model, item) -> Future      any thread; refused when the queue is full or the batcher has ended
    run(model, items) -> outcomes      the caller's function, always on one thread, as many outcomes as items

When a batch goes: an item that finds the device idle goes at once. Others wait until their model has a full batch, or
the oldest of them has waited `max_wait_s`. Of several models that are due, the one whose oldest item has waited longest
goes first, so none starves.

When it fails: out of memory halves the batch, and the model's batches stay that small for `recover_s`; after any other
error the items run singly, so that one bad picture fails alone. If the device itself is lost (DeviceFailed), or
anything else ends the thread, all items get that as their outcome and `on_death` is called; none is left waiting. The
same happens, on a second thread, when a batch has not ended after `stuck_s`: such a call cannot be interrupted.

No torch, Redis or Celery in here; the clock and `run` are arguments, so tests need neither sleep nor a network.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from shared.errors import DeviceFailed, DeviceQueueFull, InternalError, OutOfDeviceMemory

log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class BatchLimits:
    """How batches are made.

    Attributes:
        max_batch: most items of one batch. max_wait_s: longest wait for more items (s).
        max_waiting: most items that may wait at once, of all models.
        recover_s: how long a model's batches stay small after out of memory, before they may double (s).
        stuck_s: a batch that takes longer means that the device is lost (s); 0: however long it takes.
    """

    max_batch: int
    max_wait_s: float
    max_waiting: int
    recover_s: float = 60.0
    stuck_s: float = 0.0


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Item, Outcome]):
    item: Item
    future: "Future[Outcome]"
    since: float
    due: float
    had_to_wait: bool
    check: Callable[[], None]


class Batcher(Generic[Item, Outcome]):
    """Makes batches per model and runs them one at a time."""

    def __init__(
        self,
        run: Callable[[str, list[Item]], Sequence[Outcome]],
        limits: BatchLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_death: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._run = run
        self._limits = limits
        self._clock = clock
        self._on_death = on_death
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[_Waiting[Item, Outcome]]] = {}
        self._running: list[_Waiting[Item, Outcome]] = []
        self._running_since = 0.0
        self._small: dict[str, tuple[int, float]] = {}  # model -> batch limit after out of memory, since when
        self._ending = ""  # why nothing is taken any more
        self._is_dead = False
        self._thread = threading.Thread(target=self._loop, name="device", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="device-watch", daemon=True)

    # --- any thread -------------------------------------------------------------------------------------------
    def submit(self, model: str, item: Item, check: Callable[[], None] = lambda: None) -> "Future[Outcome]":
        """Queue an item. Cancel the future to drop it; that works until its batch begins.

        Args:
            check: called when the turn of an item that had to wait has come; what it raises is the item's outcome.
        Raises:
            DeviceQueueFull: as many items wait as may.
            DeviceFailed: the batcher has ended.
        """
        with self._changed:
            if self._ending:
                raise DeviceFailed(self._ending)
            count = sum(len(queue) for queue in self._waiting.values())
            if count >= self._limits.max_waiting:
                raise DeviceQueueFull(f"{count} pictures wait for the device, and no more may; try again later")
            now = self._clock()
            is_idle = not count and not self._running
            due = now if is_idle else now + self._limits.max_wait_s
            waiting = _Waiting[Item, Outcome](item, Future(), now, due, not is_idle, check)
            self._waiting.setdefault(model, deque()).append(waiting)
            self._changed.notify()
        return waiting.future

    def start(self) -> None:
        """Run batches on a thread of the batcher's own, until `close` or death."""
        self._thread.start()
        if self._limits.stuck_s:
            self._watcher.start()

    def close(self, timeout_s: float | None = None) -> None:
        """Take nothing new, finish what waits, end the thread."""
        with self._changed:
            self._ending = self._ending or "the worker is stopping"
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def waiting(self) -> int:
        """How many items wait."""
        with self._changed:
            return sum(len(queue) for queue in self._waiting.values())

    def give_up_if_stuck(self) -> bool:
        """Whether the batch that runs has taken too long; if so, all items get that as their outcome."""
        with self._changed:
            is_stuck = bool(self._running) and self._clock() - self._running_since > self._limits.stuck_s
        if is_stuck:
            self._die(DeviceFailed(f"the device has not answered for {self._limits.stuck_s:g} s"))
        return is_stuck

    def _watch(self) -> None:
        self._thread.join(pause_s := min(5.0, self._limits.stuck_s / 4))
        while self._thread.is_alive() and not self.give_up_if_stuck():
            self._thread.join(pause_s)

    # --- the device's thread ----------------------------------------------------------------------------------
    def step(self) -> bool:
        """Run one batch, if one is due; False when none is. What the thread does again and again."""
        with self._changed:
            batch = self._take(self._clock())
        if batch is None:
            return False
        self._do(*batch)
        return True

    def _loop(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._do(*batch)
        except BaseException as exc:
            self._die(exc)

    def _next(self) -> tuple[str, list[_Waiting[Item, Outcome]]] | None:
        """The next batch, waited for; None when the batcher is closed and empty."""
        with self._changed:
            while True:
                now = self._clock()
                batch = self._take(now)
                if batch is not None:
                    return batch
                due = [queue[0].due for queue in self._waiting.values() if queue]
                if not due and self._ending:
                    return None
                self._changed.wait(max(0.0, min(due) - now) if due else None)

    def _take(self, now: float) -> tuple[str, list[_Waiting[Item, Outcome]]] | None:
        """Remove the batch that is due now from the queue; the caller holds the lock."""
        for model, queue in self._waiting.items():
            self._waiting[model] = deque(waiting for waiting in queue if not waiting.future.cancelled())
        due = [model for model, queue in self._waiting.items() if queue and self._is_due(model, queue, now)]
        if not due:
            return None
        model = min(due, key=lambda name: self._waiting[name][0].since)
        queue = self._waiting[model]
        batch: list[_Waiting[Item, Outcome]] = []
        while queue and len(batch) < self._batch_limit(model, now):
            waiting = queue.popleft()
            if waiting.future.set_running_or_notify_cancel():
                batch.append(waiting)
        self._running, self._running_since = batch, now
        return (model, batch) if batch else None

    def _is_due(self, model: str, queue: deque[_Waiting[Item, Outcome]], now: float) -> bool:
        return now >= queue[0].due or len(queue) >= self._batch_limit(model, now) or bool(self._ending)

    def _batch_limit(self, model: str, now: float) -> int:
        if model not in self._small:
            return self._limits.max_batch
        limit, since = self._small[model]
        if now - since >= self._limits.recover_s:
            limit = min(2 * limit, self._limits.max_batch)
            self._small[model] = (limit, now)
            if limit == self._limits.max_batch:
                del self._small[model]
        return limit

    def _do(self, model: str, batch: list[_Waiting[Item, Outcome]]) -> None:
        batch = [waiting for waiting in batch if self._passes_check(waiting)]
        started = self._clock()
        if batch:
            self._compute(model, batch)
        with self._changed:
            self._running = []
        if batch:
            log.debug(
                "batch_done",
                model=model,
                size=len(batch),
                wait_ms=round((started - batch[0].since) * 1000, 1),
                infer_ms=round((self._clock() - started) * 1000, 1),
            )

    @staticmethod
    def _passes_check(waiting: _Waiting[Item, Outcome]) -> bool:
        if not waiting.had_to_wait:
            return True
        try:
            waiting.check()
        except Exception as exc:
            waiting.future.set_exception(exc)
            return False
        return True

    def _compute(self, model: str, batch: list[_Waiting[Item, Outcome]]) -> None:
        """Give every item of the batch its outcome. Raises DeviceFailed, and what is no Exception."""
        try:
            outcomes = self._run(model, [waiting.item for waiting in batch])
            if len(outcomes) != len(batch):
                raise InternalError(f"{model} gave {len(outcomes)} masks for {len(batch)} pictures")
        except DeviceFailed:
            raise
        except Exception as exc:
            if len(batch) == 1:
                batch[0].future.set_exception(exc)
                return
            is_memory = isinstance(exc, OutOfDeviceMemory)
            size = len(batch) // 2 if is_memory else 1
            if is_memory:
                with self._changed:
                    self._small[model] = (size, self._clock())
            log.warning("batch_split", model=model, size=len(batch), into=size, error=str(exc)[:500])
            for start in range(0, len(batch), size):
                self._compute(model, batch[start : start + size])
        else:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                waiting.future.set_result(outcome)

    def _die(self, exc: BaseException) -> None:
        """The thread ends: everything that waits gets an outcome, and so does whatever comes later."""
        reason = exc.message if isinstance(exc, DeviceFailed) else f"the device's thread ended: {exc!r}"
        with self._changed:
            if self._is_dead:
                return  # a batch that was given up has ended after all
            self._is_dead = True
            self._ending = reason
            left = [*self._running, *(waiting for queue in self._waiting.values() for waiting in queue)]
            self._waiting.clear()
            self._running = []
        log.error("device_failed", reason=reason, exc_info=exc)
        for waiting in left:
            # Those of the running batch that had their outcome keep it; those in the queue may have been canceled.
            if not waiting.future.done() and (
                waiting.future.running() or waiting.future.set_running_or_notify_cancel()
            ):
                waiting.future.set_exception(DeviceFailed(reason))
        self._on_death(reason)
