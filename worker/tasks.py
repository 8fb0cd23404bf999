"""Celery's view of the pipeline: four tasks, and the chord that joins them.

    jobs.plan -> prepare both sides, then chord([jobs.cell x sides x models], jobs.assemble), jobs.fail as errback

One plain `plan` task and one flat chord is the shape that came out best of those measured (field notes, section 6).
Bodies are thin: they bind the ids to the log and call the pipeline.
"""

from functools import partial
from typing import Any

import structlog
from celery import Celery, Signature, Task, chord

from shared import messages
from shared.errors import WorkerCrashed
from shared.logs import bind_context
from worker.crashes import CrashGuard
from worker.patience import patiently
from worker.pipeline import Pipeline

log = structlog.get_logger(__name__)


class OneCommandChord(chord):  # type: ignore[misc]  # Celery is untyped
    """A chord that sends all of its messages in one command, when everything else about it is in place.

    Sent one by one, the first cells are at work while the others are still being sent, and take turns with that.
    """

    def run(self, header: Any, *args: Any, **kwargs: Any) -> Any:
        with self.app.producer_or_acquire() as producer, producer.batch():
            header.apply_async = partial(header.apply_async, producer=producer)
            return super().run(header, *args, **kwargs)


def _signature(task: Task, arguments: dict[str, str]) -> Signature:
    """A task with its arguments, and with what Flower shows of them: Celery's own way costs ten times as much."""
    return task.s(**arguments).set(argsrepr="()", kwargsrepr=repr(arguments))


def register_tasks(app: Celery, pipeline: Pipeline, guard: CrashGuard) -> None:
    """Add the four tasks to the app, bound to this pipeline; not shared, or apps made later would get them too."""

    @app.task(name=messages.PLAN, ignore_result=True, shared=False)
    def plan(job_id: str, request_id: str) -> None:
        with bind_context(job_id=job_id, request_id=request_id):
            try:
                with guard.step(job_id):
                    cells = patiently(lambda: pipeline.prepare(job_id))
            except WorkerCrashed as exc:
                _give_up(job_id, exc)
                return
            except Exception as exc:  # the message is done with it: nobody else would ever end the job
                log.exception("plan_failed")
                detail = repr(exc)
                patiently(lambda: pipeline.fail(job_id, detail=detail[:500]))
                return
            if cells is None:  # this message came back before it was acknowledged
                return
            if not cells:
                _assemble(job_id)
                return
            patiently(lambda: _submit(cells, {"job_id": job_id, "request_id": request_id}))
            # A kill before this line submits a second canvas, whose cells find their work done: twice the messages,
            # one result. A mark set before submitting could lose the job instead.
            patiently(lambda: pipeline.submitted(job_id))

    def _submit(cells: list[tuple[str, str]], ids: dict[str, str]) -> None:
        body = _signature(assemble, ids).on_error(_signature(fail, ids))
        with messages.sending():
            OneCommandChord(
                [_signature(cell, {"side": side, "model": model, **ids}) for side, model in cells], body
            ).apply_async()

    def _give_up(job_id: str, error: WorkerCrashed) -> None:
        patiently(lambda: pipeline.give_up(job_id, error))

    # The store has the cell's record; the chord only counts, so its result is one word and is not kept anywhere else.
    @app.task(name=messages.CELL, ignore_result=True, shared=False)
    def cell(job_id: str, request_id: str, side: str, model: str) -> str:
        with bind_context(job_id=job_id, request_id=request_id):
            try:
                with guard.step(job_id):
                    return str(patiently(lambda: pipeline.cell(job_id, side, model))["status"])
            except WorkerCrashed as exc:
                _give_up(job_id, exc)
                return exc.code

    def _assemble(job_id: str) -> None:
        try:
            with guard.step(job_id):
                patiently(lambda: pipeline.assemble(job_id))
        except WorkerCrashed as exc:
            _give_up(job_id, exc)

    @app.task(name=messages.ASSEMBLE, ignore_result=True, shared=False)
    def assemble(outcomes: list[str], job_id: str, request_id: str) -> None:
        with bind_context(job_id=job_id, request_id=request_id):
            _assemble(job_id)

    @app.task(name=messages.FAIL, ignore_result=True, shared=False)
    def fail(*error: Any, job_id: str, request_id: str) -> None:
        with bind_context(job_id=job_id, request_id=request_id):
            patiently(lambda: pipeline.fail(job_id, detail=str(error[1:2] or error)[:500]))
