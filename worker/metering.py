"""Counts what Celery gives to this worker, for /metrics."""

from typing import Any

from celery import Celery, signals

from shared import messages
from shared.store import Counters
from shared.store.counters import DELIVERIES, REDELIVERIES

#: Only our own tasks: names in messages are anybody's who can write to Redis, labels are few.
_TASKS = frozenset({messages.PLAN, messages.CELL, messages.ASSEMBLE, messages.FAIL, messages.WEBHOOK})


def count_deliveries(app: Celery, counters: Counters) -> None:
    """Count every task that begins from now on, and those that had begun before (their worker died, or lost Redis)."""

    def count(task: Any, **_: Any) -> None:
        if task.app is app and task.name in _TASKS:
            counters.add(DELIVERIES, task.name)
            if (task.request.delivery_info or {}).get("redelivered"):
                counters.add(REDELIVERIES, task.name)

    signals.task_prerun.connect(count, weak=False)
