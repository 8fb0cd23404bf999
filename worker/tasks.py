"""Celery's view of the pipeline: four tasks, and the chord that joins them.

    jobs.plan -> prepare both sides, then chord([jobs.cell x sides x models], jobs.assemble), jobs.fail as errback

One plain `plan` task and one flat chord is the shape that came out best of those measured (field notes, section 6).
Bodies are thin: they bind the ids to the log and call the pipeline.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from celery import Celery, chord

from shared import messages
from shared.errors import StoreUnavailable
from shared.logs import bind_context
from worker.pipeline import Pipeline

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


def register_tasks(app: Celery, pipeline: Pipeline) -> None:
    """Add the four tasks to the app, bound to this pipeline."""

    @app.task(name=messages.PLAN, ignore_result=True)
    def plan(job_id: str, request_id: str) -> None:
        with bind_context(job_id=job_id, request_id=request_id):
            try:
                cells = patiently(lambda: pipeline.prepare(job_id))
            except Exception as exc:  # the message is done with it: nobody else would ever end the job
                log.exception("plan_failed")
                detail = repr(exc)
                patiently(lambda: pipeline.fail(job_id, detail=detail[:500]))
                return
            if cells is None:  # this message came back before it was acknowledged
                return
            if not cells:
                patiently(lambda: pipeline.assemble(job_id))
                return
            ids = {"job_id": job_id, "request_id": request_id}
            body = assemble.s(**ids).on_error(fail.s(**ids))
            chord([cell.s(side=side, model=model, **ids) for side, model in cells], body).apply_async()
            # A kill before this line submits a second canvas, whose cells find their work done: twice the messages,
            # one result. A mark set before submitting could lose the job instead.
            pipeline.submitted(job_id)

    # The store has the cell's record; the chord only counts, so its result is one word and is not kept anywhere else.
    @app.task(name=messages.CELL, ignore_result=True)
    def cell(job_id: str, request_id: str, side: str, model: str) -> str:
        with bind_context(job_id=job_id, request_id=request_id):
            return str(patiently(lambda: pipeline.cell(job_id, side, model))["status"])

    @app.task(name=messages.ASSEMBLE, ignore_result=True)
    def assemble(outcomes: list[str], job_id: str, request_id: str) -> None:
        with bind_context(job_id=job_id, request_id=request_id):
            patiently(lambda: pipeline.assemble(job_id))

    @app.task(name=messages.FAIL, ignore_result=True)
    def fail(*error: Any, job_id: str, request_id: str) -> None:
        with bind_context(job_id=job_id, request_id=request_id):
            patiently(lambda: pipeline.fail(job_id, detail=str(error[1:2] or error)[:500]))
