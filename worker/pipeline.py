"""The steps of a job: prepare its sides, compute its cells, put the reply together.

No Celery in here: tasks.py wraps these steps, so they can be run and tested as plain calls. Every step may run twice
and leaves the same result: names come from the job, files are renamed into place, and the store lets the first final
state win. No step raises for a fault of one picture; it records the error where the picture's result would be.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from shared.errors import AppError, InternalError, JobNotFound
from shared.jobs import FINAL_CELLS, CellRecord, CellStatus, Job, JobStatus, cell_name, utc_now
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import Store
from worker.budget import PixelBudget
from worker.cells import CellMaker, LoadedEngine
from worker.device import DeviceQueue
from worker.pictures import PreparedSides
from worker.review import Reviewer
from worker.sources import load_source

log = structlog.get_logger(__name__)


class Pipeline:
    """All steps of all jobs of one worker."""

    def __init__(
        self, settings: Settings, store: Store, storage: FolderStorage, engines: Mapping[str, LoadedEngine]
    ) -> None:
        self._settings = settings
        self._store = store
        self._storage = storage
        self._prepared = PreparedSides(
            storage, pixel_limit=settings.pixel_limit, cache_bytes=settings.picture_cache_mb * 1_000_000
        )
        budget = PixelBudget(int(settings.pixels_in_flight_mp * 1_000_000))
        self._cells = CellMaker(storage, self._prepared, engines, DeviceQueue(), budget)
        self._reviewer = Reviewer(storage, self._prepared)

    # --- step 1: prepare --------------------------------------------------------------------------------------
    def prepare(self, job_id: str) -> list[tuple[str, str]]:
        """Fetch and check every side, each in a thread of its own.

        Returns:
            The (side, model) pairs that can be computed. Cells of a side that failed are recorded as failed. Empty
            too when the job is gone or has ended.
        """
        try:
            job = self._store.get(job_id)
        except JobNotFound:
            log.warning("job_gone", step="prepare")
            return []
        if job.is_final:
            return []
        self._store.transition(job_id, JobStatus.PREPARING)
        with ThreadPoolExecutor(len(job.sides), thread_name_prefix="prepare") as threads:
            outcomes = list(threads.map(lambda side: self._prepare_side(job, side), job.sides))
        good = []
        for side, (error, seconds) in zip(job.sides, outcomes, strict=True):
            self._store.set_mark(job_id, f"prepare_seconds:{side}", f"{seconds:.3f}")
            for model in job.models:
                if error is None:
                    good.append((side, model))
                else:
                    self._store.record_cell(
                        job_id,
                        cell_name(side, model),
                        CellRecord(status=CellStatus.FAILED, error=error.to_record()),
                    )
        self._store.transition(job_id, JobStatus.PROCESSING)
        return good

    def _prepare_side(self, job: Job, side: str) -> tuple[AppError | None, float]:
        started = time.perf_counter()
        error: AppError | None = None
        try:
            # A second delivery finds the side prepared: nothing is fetched (or billed) twice.
            if not self._prepared.exists(job.job_id, side):
                data = load_source(job.sources[side], self._settings, self._storage)  # type: ignore[index]
                self._prepared.save(job.job_id, side, data)
        except AppError as exc:
            error = exc
            log.warning("prepare_failed", job_id=job.job_id, side=side, code=exc.code, detail=exc.message)
        except Exception:
            log.exception("prepare_failed", job_id=job.job_id, side=side, code=InternalError.code)
            error = InternalError(f"the {side} could not be prepared; the log has the details under this job's id")
        return error, time.perf_counter() - started

    # --- step 2: a cell ---------------------------------------------------------------------------------------
    def cell(self, job_id: str, side: str, model: str) -> dict[str, Any]:
        """Compute one cell and write its PNG.

        Returns:
            The cell's record as a JSON object, also when it failed: a chord whose task raises never ends.
        """
        name = cell_name(side, model)
        try:
            job = self._store.get(job_id)
            if job.is_final:
                return job.cells[name].model_dump(mode="json")
            record = job.cells[name]
            if record.status == CellStatus.SUCCEEDED and self._is_delivered(record):
                return record.model_dump(mode="json")  # delivered again after it was done
            self._store.record_cell(job_id, name, CellRecord(status=CellStatus.PROCESSING))
            record = self._cells.make(job, side, model)
        except JobNotFound as exc:
            log.warning("job_gone", step="cell", cell=name)
            return CellRecord(status=CellStatus.FAILED, error=exc.to_record()).model_dump(mode="json")
        except AppError as exc:
            log.warning("cell_failed", cell=name, code=exc.code, detail=exc.message)
            record = CellRecord(status=CellStatus.FAILED, error=exc.to_record())
        except Exception:
            log.exception("cell_failed", cell=name, code=InternalError.code)
            error = InternalError(f"{name} failed; the log has the details under this job's id")
            record = CellRecord(status=CellStatus.FAILED, error=error.to_record())
        self._store.record_cell(job_id, name, record)
        return record.model_dump(mode="json")

    def _is_delivered(self, record: CellRecord) -> bool:
        return record.url is not None and self._storage.path(record.url.rpartition("/")[2]).is_file()

    # --- step 3: the reply ------------------------------------------------------------------------------------
    def assemble(self, job_id: str) -> None:
        """End the job from the records of its cells; of several calls, the first one counts."""
        try:
            job = self._store.get(job_id)
        except JobNotFound:
            log.warning("job_gone", step="assemble")
            return
        if not job.is_final:
            self._finish(job)
        # Also when an earlier call ended the job and then died before this line.
        self._prepared.remove(job_id)

    def _finish(self, job: Job) -> None:
        good = [cell for cell in job.cells.values() if cell.status == CellStatus.SUCCEEDED]
        first_error = next((cell.error for cell in job.cells.values() if cell.error), None)
        if not good:
            error = first_error or InternalError("no cell was computed").to_record()
            self._end(job, JobStatus.FAILED, None, error)
            return
        status = JobStatus.SUCCEEDED if len(good) == len(job.cells) else JobStatus.PARTIAL
        completed = utc_now()
        result: dict[str, Any] = {"id": job.id}
        result |= {name: cell.url for name, cell in job.cells.items()}
        result |= {
            "processing_time_seconds": round((completed - job.created_at).total_seconds(), 3),
            "job_id": job.job_id,
            "status": status.value,
            "cells": {name: cell.model_dump(mode="json") for name, cell in job.cells.items()},
            "timings": self._timings(job),
        }
        result |= self._review(job)
        self._end(job, status, result, None)

    def _review(self, job: Job) -> dict[str, Any]:
        """What only all cells together can tell. It never costs the job its result."""
        try:
            return self._reviewer.review(job)
        except Exception:
            log.exception("review_failed")
            return {"sides": {}}

    def _timings(self, job: Job) -> dict[str, float]:
        """Seconds: waiting in the queue, preparing each side, computing each cell."""
        timings = {}
        if job.started_at is not None:
            timings["queue_seconds"] = round((job.started_at - job.created_at).total_seconds(), 3)
        for side in job.sides:
            seconds = self._store.get_mark(job.job_id, f"prepare_seconds:{side}")
            if seconds is not None:
                timings[f"prepare_{side}_seconds"] = float(seconds)
        for name, cell in job.cells.items():
            if cell.seconds is not None:
                timings[f"{name}_seconds"] = cell.seconds
        return timings

    def fail(self, job_id: str, detail: str) -> None:
        """End a job whose canvas broke: the safety net behind errors that are values."""
        try:
            job = self._store.get(job_id)
        except JobNotFound:
            return
        log.error("canvas_failed", detail=detail)
        if not job.is_final and all(cell.status in FINAL_CELLS for cell in job.cells.values()):
            self._finish(job)  # only the canvas broke: what the cells delivered is not lost with it
        elif not job.is_final:
            self._end(job, JobStatus.FAILED, None, InternalError("the job's steps were interrupted").to_record())
        self._prepared.remove(job_id)

    def _end(self, job: Job, status: JobStatus, result: dict[str, Any] | None, error: dict[str, Any] | None) -> None:
        if self._store.finish(job.job_id, status, result, error):
            seconds = (utc_now() - job.created_at).total_seconds()
            log.info("job_done", status=status.value, seconds=round(seconds, 3), cells=len(job.cells))
