"""The steps of a job: prepare its sides, compute its cells, put the reply together.

No Celery in here: tasks.py wraps these steps, so they can be run and tested as plain calls. Every step may run twice
and leaves the same result: names come from the job, files are renamed into place, and the store lets the first final
state win. No step raises for a fault of one picture; it records the error where the picture's result would be.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import structlog

from shared.errors import AppError, InternalError, JobCanceled, JobExpired, JobNotFound, StoreUnavailable
from shared.jobs import (
    FINAL,
    FINAL_CELLS,
    SIDES,
    CellRecord,
    CellStatus,
    ExtractionReport,
    Job,
    JobStatus,
    cell_name,
    utc_now,
)
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import EXTRACTION_MARK, Store
from worker.budget import PixelBudget
from worker.cells import CellMaker, LoadedEngine
from worker.device import DeviceQueue
from worker.extraction import Extractor
from worker.pictures import PreparedSides
from worker.result_cache import ResultCache
from worker.review import Reviewer, side_reports
from worker.sources import load_source

log = structlog.get_logger(__name__)


#: The mark that says whether a job's cells are on their way.
CANVAS_MARK, _SUBMITTED, CANVAS_LOST = "canvas", "submitted", "lost"
#: The result cache was asked when the job was prepared; a cell that comes to its turn this soon (s) does not ask again.
_ASKED_AGAIN_AFTER_S = 1.0

#: What became of a side's preparation: its error, its extraction's report where that is still to be recorded, seconds.
SideOutcome = tuple[AppError | None, ExtractionReport | None, float]


def _prepare_mark(side: str) -> str:
    """Name of the mark that holds the seconds of a side's preparation."""
    return f"prepare_seconds:{side}"


class Pipeline:
    """All steps of all jobs of one worker."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        storage: FolderStorage,
        engines: Mapping[str, LoadedEngine],
        device: DeviceQueue,
    ) -> None:
        self._settings = settings
        self._store = store
        self._storage = storage
        budget = PixelBudget(int(settings.pixels_in_flight_mp * 1_000_000))
        self._prepared = PreparedSides(
            storage, budget, pixel_limit=settings.pixel_limit, cache_bytes=settings.picture_cache_mb * 1_000_000
        )
        self._cells = CellMaker(storage, self._prepared, engines, device)
        self._cache = ResultCache(settings, store, storage, self._prepared, engines)
        self._reviewer = Reviewer(storage, self._prepared)
        self._extractor = Extractor(settings, store, storage, budget)
        # Threads that stay: OpenCV keeps 0.8 KB of every thread that has used it, also when that is gone. As many as
        # all plans that run at once can use, so none waits for another's sides.
        self._threads = ThreadPoolExecutor((len(SIDES) - 1) * settings.worker_threads, thread_name_prefix="prepare")

    # --- step 1: prepare --------------------------------------------------------------------------------------
    def prepare(self, job_id: str) -> list[tuple[str, str]] | None:
        """Fetch and check every side that has cells to do, at the same time.

        Returns:
            The (side, model) pairs that have to be computed. Cells of a side that failed are recorded as failed, cells
            that the result cache has as succeeded. Empty too when the job is gone or has ended; None when its cells
            were submitted before.
        """
        job, marks = self._current(job_id, "prepare")
        if marks.get(CANVAS_MARK) == _SUBMITTED:
            return None
        if job is None or job.is_final:
            return []
        try:
            return self._prepare(job)
        except JobNotFound:
            self._remove_files(job_id)
            return []

    def _prepare(self, job: Job) -> list[tuple[str, str]]:
        job_id = job.job_id
        self._store.transition(job_id, JobStatus.PREPARING)
        # A retry comes with cells that are finished; a side that has no others need not be fetched.
        open_cells = [
            (side, model)
            for side in job.sides
            for model in job.models
            if job.cells[cell_name(side, model)].status not in FINAL_CELLS
        ]
        sides = list(dict.fromkeys(side for side, _ in open_cells))
        outcomes = self._prepare_sides(job, sides)
        good, marks = [], {}
        for side, (error, report, seconds) in zip(sides, outcomes, strict=True):
            marks[_prepare_mark(side)] = f"{seconds:.3f}"
            if report is not None:
                marks[f"{EXTRACTION_MARK}{side}"] = report.model_dump_json()
            for model in [model for other, model in open_cells if other == side]:
                if error is None:
                    good.append((side, model))
                else:
                    self._store.record_cell(
                        job_id,
                        cell_name(side, model),
                        CellRecord(status=CellStatus.FAILED, error=error.to_record()),
                    )
        if not self._store.transition(job_id, JobStatus.PROCESSING, marks):  # canceled meanwhile, or delivered again
            job = self._store.get(job_id)
        if self._store.expire_if_overdue(job).is_final:
            return []
        found = self._cache.find(job, good)
        for (side, model), record in found.items():
            self._deliver(job, side, model, record)
        return [cell for cell in good if cell not in found]

    def submitted(self, job_id: str) -> None:
        """Note that the cells of a job are on their way, so that a second delivery does not submit them again."""
        with suppress(JobNotFound):  # deleted meanwhile: the cells will find that out
            self._store.set_mark(job_id, CANVAS_MARK, _SUBMITTED)

    def _current(self, job_id: str, step: str) -> tuple[Job | None, dict[str, str]]:
        """The job as it stands when a step begins, and its marks; None when its record is gone.

        One that is past its deadline ends here, before it costs anything more.
        """
        try:
            job, marks = self._store.get_with_marks(job_id)
            return self._store.expire_if_overdue(job), marks
        except JobNotFound:
            log.warning("job_gone", step=step)
            return None, {}

    def _prepare_sides(self, job: Job, sides: list[str]) -> list[SideOutcome]:
        """Prepare all sides at the same time, the first on this thread."""
        if not sides:
            return []
        first, *others = sides
        # Each in a copy of this step's context, or its log lines would lack the ids.
        running = [self._threads.submit(copy_context().run, self._prepare_side, job, side) for side in others]
        try:
            outcome = self._prepare_side(job, first)
        finally:
            wait(running)  # none goes on behind the back of a step that is done again
        return [outcome, *(task.result() for task in running)]

    def _prepare_side(self, job: Job, side: str) -> SideOutcome:
        started = time.perf_counter()
        error: AppError | None = None
        report: ExtractionReport | None = None
        try:
            # A second delivery finds the side prepared: nothing is fetched (or billed) twice.
            if not self._prepared.exists(job.job_id, side):
                source = job.sources[side]  # type: ignore[index]
                data = load_source(source, self._settings, self._storage)
                design = self._extractor.prepare(job, side, data, lambda: self._raise_if_ended(job))
                report = design.report
                uploaded = source.path.rpartition("/")[2] if source.path and design.data is data else None
                self._prepared.save(job.job_id, side, design.data, design.picture, same_as=uploaded)
        except StoreUnavailable:
            raise  # the step is done again when Redis is back; no side has failed
        except AppError as exc:
            error = exc
            log.warning("prepare_failed", job_id=job.job_id, side=side, code=exc.code, detail=exc.message)
        except Exception:
            log.exception("prepare_failed", job_id=job.job_id, side=side, code=InternalError.code)
            error = InternalError(f"the {side} could not be prepared; the log has the details under this job's id")
        return error, report, time.perf_counter() - started

    # --- step 2: a cell ---------------------------------------------------------------------------------------
    def cell(self, job_id: str, side: str, model: str) -> dict[str, Any]:
        """Compute one cell and write its PNG.

        Returns:
            The cell's record as a JSON object, also when it failed: a chord whose task raises never ends.
        """
        name = cell_name(side, model)
        gone = CellRecord(status=CellStatus.FAILED, error=JobNotFound(f"the job of {name} is gone").to_record())
        try:
            job = self._store.expire_if_overdue(self._store.begin_cell(job_id, name))
        except JobNotFound:
            log.warning("job_gone", step="cell")
            return gone.model_dump(mode="json")
        record = job.cells[name]
        # Ended, or delivered again after it was done.
        if job.is_final or (record.status == CellStatus.SUCCEEDED and self._is_delivered(record)):
            return record.model_dump(mode="json")
        try:
            record = self._compute(job, side, model)
            self._deliver(job, side, model, record)
        except JobNotFound:
            self._remove_files(job_id)
            record = gone
        return record.model_dump(mode="json")

    def _compute(self, job: Job, side: str, model: str) -> CellRecord:
        """The cell's record, whatever happens; only a job that is gone is an error."""
        name = cell_name(side, model)
        try:
            found = self._find_again(job, side, model)
            return found or self._cells.make(job, side, model, lambda: self._raise_if_ended(job))
        except JobNotFound:
            raise
        except (JobCanceled, JobExpired) as exc:
            log.info("cell_dropped", cell=name, code=exc.code)
            return CellRecord(status=CellStatus.FAILED, error=exc.to_record())
        except AppError as exc:
            log.warning("cell_failed", cell=name, code=exc.code, detail=exc.message)
            return CellRecord(status=CellStatus.FAILED, error=exc.to_record())
        except Exception:
            log.exception("cell_failed", cell=name, code=InternalError.code)
            error = InternalError(f"{name} failed; the log has the details under this job's id")
            return CellRecord(status=CellStatus.FAILED, error=error.to_record())

    def _find_again(self, job: Job, side: str, model: str) -> CellRecord | None:
        """The cell from the result cache, when it may have come there since the job was prepared."""
        if job.started_at is None or (utc_now() - job.started_at).total_seconds() < _ASKED_AGAIN_AFTER_S:
            return None
        return self._cache.find(job, [(side, model)]).get((side, model))

    def _raise_if_ended(self, job: Job) -> None:
        """Called last before the device is used, and while others wait for it: one short question to Redis."""
        try:
            if job.is_overdue:
                self._store.expire(job.job_id)
            status = self._store.status(job.job_id)
        except StoreUnavailable:
            return  # an outage must not cost a cell
        if status == JobStatus.EXPIRED:
            raise JobExpired("the job's deadline has passed")
        if status in FINAL:
            raise JobCanceled(f"the job is {status}")

    def _deliver(self, job: Job, side: str, model: str, record: CellRecord) -> None:
        name = cell_name(side, model)
        is_new = record.status == CellStatus.SUCCEEDED and not record.cached
        kept = self._cache.entry(job, side, model, record) if is_new else None
        if self._store.record_cell(job.job_id, name, record, kept=kept):
            if record.status == CellStatus.FAILED:
                # Some of its files may have been written before the one that failed.
                self._storage.remove_outputs(job.job_id, cell=name)
            return
        now = self._store.get(job.job_id)
        if now.is_final and now.cells[name].status != CellStatus.SUCCEEDED:
            # Canceled while this was computed: nobody will ever be told of these files.
            self._storage.remove_outputs(job.job_id, cell=name)

    def _remove_files(self, job_id: str) -> None:
        """The job was deleted, with all of its files, while a step was running; what that has written goes too.

        Never for a job that was gone when the step began: its record may have expired, and its outputs outlive that.
        """
        log.warning("job_deleted_meanwhile")
        self._storage.remove_job(job_id)

    def _is_delivered(self, record: CellRecord) -> bool:
        return record.url is not None and self._storage.path(record.url.rpartition("/")[2]).is_file()

    # --- step 3: the reply ------------------------------------------------------------------------------------
    def assemble(self, job_id: str) -> None:
        """End the job from the records of its cells; of several calls, the first one counts."""
        job, marks = self._current(job_id, "assemble")
        if job is None:
            return
        try:
            status = job.status if job.is_final else self._finish(job, marks)
            # Also when an earlier call ended the job and then died before this line.
            self._clean_up(job_id, status)
        except JobNotFound:
            self._remove_files(job_id)

    def _finish(self, job: Job, marks: Mapping[str, str], *, has_review: bool = True) -> JobStatus:
        """End an open job as its cells say; returns how it has ended."""
        good = [cell for cell in job.cells.values() if cell.status == CellStatus.SUCCEEDED]
        first_error = next((cell.error for cell in job.cells.values() if cell.error), None)
        if not good:
            error = first_error or InternalError("no cell was computed").to_record()
            return self._end(job, JobStatus.FAILED, None, error)
        status = JobStatus.SUCCEEDED if len(good) == len(job.cells) else JobStatus.PARTIAL
        completed = utc_now()
        result: dict[str, Any] = {"id": job.id}
        result |= {name: cell.url for name, cell in job.cells.items()}
        result |= {
            "processing_time_seconds": round((completed - job.created_at).total_seconds(), 3),
            "job_id": job.job_id,
            "status": status.value,
            "cells": {name: cell.model_dump(mode="json") for name, cell in job.cells.items()},
            "timings": _timings(job, marks),
        }
        result |= self._review(job) if has_review else {"sides": side_reports(job, {})}
        if job.tokens is not None:
            result["tokens"] = job.tokens.model_dump()
        return self._end(job, status, result, None)

    def _review(self, job: Job) -> dict[str, Any]:
        """What only all cells together can tell. It never costs the job its result."""
        try:
            return self._reviewer.review(job)
        except Exception:
            log.exception("review_failed")
            return {"sides": side_reports(job, {})}

    def fail(self, job_id: str, detail: str) -> None:
        """End a job whose canvas broke: the safety net behind errors that are values."""
        log.error("canvas_failed", detail=detail)
        try:
            job, marks = self._store.get_with_marks(job_id)
        except JobNotFound:
            return
        if not job.is_final and all(cell.status in FINAL_CELLS for cell in job.cells.values()):
            self._finish(job, marks)  # only the canvas broke: what the cells delivered is not lost with it
        elif not job.is_final:
            self._end(job, JobStatus.FAILED, None, InternalError("the job's steps were interrupted").to_record())
        self._prepared.forget(job_id)

    def give_up(self, job_id: str, error: AppError) -> None:
        """End a job that no worker survives: its open cells fail with the error, what was delivered stays.

        Nothing of its pictures is read again, so there is no review of the cells it has.
        """
        log.error("job_given_up", detail=error.message)
        try:
            job = self._store.get(job_id)
            if job.is_final:
                return
            for name, cell in job.cells.items():
                if cell.status not in FINAL_CELLS:
                    failed = CellRecord(status=CellStatus.FAILED, error=error.to_record())
                    if self._store.record_cell(job_id, name, failed):
                        self._storage.remove_outputs(job_id, cell=name)  # it may be written, but was never delivered
            self._finish(*self._store.get_with_marks(job_id), has_review=False)
        except JobNotFound:
            self._remove_files(job_id)
        self._prepared.forget(job_id)

    def _clean_up(self, job_id: str, status: JobStatus) -> None:
        """Let go of what a job that has ended does not need; the sweeper takes the rest when its time is over.

        Sources of a job that did not succeed stay for a retry, small copies for cells that are taken over.
        """
        self._prepared.forget(job_id)
        if status == JobStatus.SUCCEEDED:
            if self._cache.is_on:
                self._storage.remove_sources(job_id)
            else:
                self._storage.remove_work(job_id)

    def _end(
        self, job: Job, status: JobStatus, result: dict[str, Any] | None, error: dict[str, Any] | None
    ) -> JobStatus:
        """End the job, unless it has ended by now; returns how."""
        if self._store.finish(job.job_id, status, result, error):
            now = utc_now()
            # What was taken over, or kept its own alpha, ran no model and says nothing about those that will.
            good = [cell for cell in job.cells.values() if cell.status == CellStatus.SUCCEEDED]
            computed = sum(not cell.cached and not cell.own_alpha for cell in good)
            if job.started_at is not None:
                self._store.pace.record(job.started_at.timestamp(), now.timestamp(), computed)
            seconds = (now - job.created_at).total_seconds()
            log.info("job_done", status=status.value, seconds=round(seconds, 3), cells=len(job.cells))
            return status
        return self._store.status(job.job_id)


def _timings(job: Job, marks: Mapping[str, str]) -> dict[str, float]:
    """Seconds: waiting in the queue, preparing each side, computing each cell."""
    timings = {}
    if job.started_at is not None:
        timings["queue_seconds"] = round((job.started_at - job.created_at).total_seconds(), 3)
    for side in job.sides:
        if _prepare_mark(side) in marks:
            timings[f"prepare_{side}_seconds"] = float(marks[_prepare_mark(side)])
    for name, cell in job.cells.items():
        if cell.seconds is not None:
            timings[f"{name}_seconds"] = cell.seconds
    return timings
