"""What must happen although nobody asks: deadlines that pass, and files that are no longer needed.

Every worker sweeps; two that do it at once do each other no harm.
"""

import time

import structlog

from shared.errors import JobNotFound, StoreUnavailable
from shared.jobs import JobStatus, utc_now
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import Store
from shared.store.counters import ABANDONED
from worker.answers import Answers
from worker.retention import Retention
from worker.ticker import Ticker

log = structlog.get_logger(__name__)

#: How often deadlines, outputs and other files are looked at (s), and how many jobs Redis is asked for at once.
_DEADLINES_S = 1.0
_OUTPUTS_S = 60.0
_FILES_S = 300.0
_STEP = 500
#: A file that nobody can be writing any more (s): of a job without a record, or half of an output.
_ABANDONED_S = 3600.0


class Sweeper(Ticker):
    """A thread that sweeps until it is closed."""

    def __init__(self, settings: Settings, store: Store, storage: FolderStorage) -> None:
        super().__init__("sweeper", _DEADLINES_S)
        self._settings = settings
        self._store = store
        self._storage = storage
        self._answers = Answers.from_settings(settings, storage)
        self._retention = Retention(settings, store, storage)
        self._next_outputs = self._next_files = 0.0

    def expire_overdue(self) -> int:
        """End the jobs whose deadline has passed, and say how many there were."""
        ended = 0
        for job_id in self._store.overdue(utc_now()):
            try:
                ended += self._store.expire(job_id)
            except JobNotFound:
                self._store.forget_deadline(job_id)
        return ended

    def remove_old_files(self) -> None:
        """Remove what has had its time: sources, work folders, Gemini's answers, files that were never finished."""
        self._store.counters.add(ABANDONED, "part", self._storage.remove_unfinished(_ABANDONED_S))
        self._answers.prune()
        found = self._storage.work_folders()
        for first in range(0, len(found), _STEP):
            folders = found[first : first + _STEP]
            endings = self._store.endings([job_id for job_id, _ in folders])
            for (job_id, untouched_s), ending in zip(folders, endings, strict=True):
                if ending is None:
                    if untouched_s > _ABANDONED_S:  # a younger one may be of a request that is still being read
                        self._storage.remove_work(job_id)
                        self._store.counters.add(ABANDONED, "work")
                elif ending[1] is not None:
                    self._sweep_job(job_id, ending[0], (utc_now() - ending[1]).total_seconds())

    def _sweep_job(self, job_id: str, status: JobStatus, ended_s: float) -> None:
        sources_s = 0 if status == JobStatus.SUCCEEDED else self._settings.source_ttl_s
        if ended_s > max(sources_s, self._settings.result_cache_ttl_s):
            self._storage.remove_work(job_id)
        elif ended_s > sources_s:
            self._storage.remove_sources(job_id)

    def tick(self) -> None:
        """End what is overdue; now and then, remove old outputs and other files."""
        try:
            self.expire_overdue()
            if time.monotonic() >= self._next_outputs:
                self._next_outputs = time.monotonic() + _OUTPUTS_S
                self._retention.sweep()
            if time.monotonic() >= self._next_files:
                self._next_files = time.monotonic() + _FILES_S
                self.remove_old_files()
        except StoreUnavailable as exc:
            log.warning("sweep_failed", detail=exc.message)
        except Exception:  # a file that cannot be removed must not end the deadlines
            log.exception("sweep_failed")
