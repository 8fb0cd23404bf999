"""Celery's Redis result backend without subscriptions, and patient when Redis is away.

Nobody here waits on a Celery result: chords count in Redis and waiters read our own event stream. The stock backend
still subscribes to every result of a canvas it submits, and every chord would leave four subscriptions in the worker
for good (field notes, section 6: 300 jobs left 1200).
"""

from typing import Any

from celery.backends.redis import RedisBackend

from shared.store.connection import translated
from shared.store.lean import LeanRedis
from worker.patience import patiently


class QuietRedisBackend(RedisBackend):  # type: ignore[misc]  # Celery is untyped
    """The Redis backend, minus its subscriptions and its haste."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do not subscribe when a task is sent."""

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        """Nor when a canvas builds its GroupResult, whose barrier asks every member to tell it of its end."""
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """Nor look for one of them each time that a result object is gone, of which a canvas makes a dozen."""
        return result

    def _get_client(self) -> type[LeanRedis]:
        return LeanRedis

    def on_chord_part_return(self, request: Any, state: Any, result: Any, **kwargs: Any) -> None:
        """Count a cell that has ended, as soon as Redis can be told.

        An error here is outside of the task: Celery drops the request without an acknowledgement and still takes it
        for active, so nobody would ever do the step again. A part that is told twice counts once.
        """

        def count() -> None:
            with translated():
                super(QuietRedisBackend, self).on_chord_part_return(request, state, result, **kwargs)

        patiently(count)
