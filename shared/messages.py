"""Task names, the queue, and the Celery configuration that both ends must agree on.

Messages carry ids, never pixels or secrets: Flower shows their arguments to anyone who may open it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError
from redis.exceptions import RedisError

from shared.settings import Settings
from shared.store.connection import unavailable

#: New jobs, in the order they came.
QUEUE = "jobs"
#: Steps of jobs that were begun. Workers empty it first: a job is finished before another is begun, or a burst of jobs
#: would all be prepared, and wait on the disk, before the first of them gets its cells.
CELL_QUEUE = "cells"
#: Tries of webhooks, apart from the jobs: none shall wait behind every job that is queued, nor count as one. Before the
#: others in the alphabet: a try is short, and the worker bounds how many run at once.
WEBHOOK_QUEUE = "callbacks"
PLAN = "jobs.plan"
CELL = "jobs.cell"
ASSEMBLE = "jobs.assemble"
FAIL = "jobs.fail"
WEBHOOK = "jobs.webhook"
#: All of them: the labels of what /metrics counts by task.
TASKS = (PLAN, CELL, ASSEMBLE, FAIL, WEBHOOK)

#: Seconds until Redis gives an unacknowledged message to another worker. It is not renewed while a task runs, so it is
#: longer than the longest wait plus run (field-notes.md section 6: 5 s ran an 8 s cell twice).
VISIBILITY_TIMEOUT_S = 3600
#: Seconds that Celery keeps a task's result; never 0, which hangs chords (celery#5237).
RESULT_TTL_S = 3600


def make_celery(settings: Settings, name: str) -> Celery:
    """A Celery app with the configuration API and worker share. Nothing is connected yet."""
    url = settings.redis_url.get_secret_value()
    app = Celery(name, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_routes={task: {"queue": CELL_QUEUE} for task in (CELL, ASSEMBLE, FAIL)},
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        enable_utc=True,
        timezone="UTC",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        result_expires=RESULT_TTL_S,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "priority_steps": [0],  # no message has a priority: one list for each queue, not four
            "queue_order_strategy": "priority",  # a worker takes from its queues in the order it names them
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
    )
    return app


def send_plan(app: Celery, job_id: str, request_id: str, *, queue: str = QUEUE) -> None:
    """Queue a job for the workers: one plain message.

    The worker builds the canvas: building one in web threads takes two producers from the pool and can deadlock. No
    result is asked for, so no subscription is left behind.

    Raises:
        StoreUnavailable: Redis does not take the message.
    """
    _send(app, PLAN, {"job_id": job_id, "request_id": request_id}, queue=queue, task_id=job_id)


def send_webhook(app: Celery, job_id: str, event_id: str, token: int) -> None:
    """Queue one try of a webhook (shared/store/deliveries.py).

    Raises:
        StoreUnavailable: Redis does not take the message.
    """
    _send(app, WEBHOOK, {"job_id": job_id, "event_id": event_id, "token": token}, queue=WEBHOOK_QUEUE)


def _send(app: Celery, name: str, arguments: dict[str, Any], *, queue: str, task_id: str | None = None) -> None:
    with sending():
        app.send_task(
            name,
            kwargs=arguments,
            task_id=task_id,
            queue=queue,
            ignore_result=True,
            retry_policy={"max_retries": 2, "interval_start": 0.05, "interval_step": 0.2, "interval_max": 0.5},
        )


@contextmanager
def sending() -> Iterator[None]:
    """Errors of Celery's sending inside the block are StoreUnavailable."""
    try:
        yield
    except (OperationalError, BatchPublishError, RedisError, OSError) as exc:
        raise unavailable(exc) from exc
