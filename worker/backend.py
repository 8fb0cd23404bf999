"""Celery's Redis result backend without subscriptions.

Nobody here waits on a Celery result: chords count in Redis and waiters read our own event stream. The stock backend
still subscribes to every result of a canvas it submits, and every chord would leave four subscriptions in the worker
for good (field notes, section 6: 300 jobs left 1200).
"""

from typing import Any

from celery.backends.redis import RedisBackend


class QuietRedisBackend(RedisBackend):  # type: ignore[misc]  # Celery is untyped
    """The Redis backend, minus its subscriptions."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do not subscribe when a task is sent."""

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        """Nor when a canvas builds its GroupResult, whose barrier asks every member to tell it of its end."""
        return result
