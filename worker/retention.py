"""How long outputs stay: so long (OUTPUT_TTL), and the oldest jobs' go first when all are too many (OUTPUT_MAX_BYTES).

A job's outputs go together and never while it is open. Its record says so before the first file goes: what dies in
between is finished by the next sweep, and no record promises files that are not there.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice

import structlog

from shared.jobs import OPEN, utc_now
from shared.settings import Settings
from shared.storage import FolderStorage, OutputFile
from shared.store import Store
from shared.store.counters import OUTPUT_BYTES, OUTPUT_FILES, REMOVED_BYTES, REMOVED_JOBS

log = structlog.get_logger(__name__)

#: How many jobs Redis is asked for at once.
_STEP = 500


class Retention:
    """Removes outputs that have had their time. Workers that do it at once do each other no harm."""

    def __init__(self, settings: Settings, store: Store, storage: FolderStorage) -> None:
        self._ttl_s, self._limit_bytes = settings.output_ttl, settings.output_max_bytes
        self._store, self._storage = store, storage

    def sweep(self) -> None:
        """Measure all outputs, and remove what is too old or too much.

        Raises:
            StoreUnavailable: Redis does not answer. Nothing was removed that is not said to be.
        """
        if not self._ttl_s and not self._limit_bytes:
            # All stay, for ever: what is kept of each file, even for a moment, would grow without an end.
            usage = _Usage()
            for file in self._storage.outputs():
                usage.add(file)
            self._report(usage)
            return
        folder = _Folder(self._storage.outputs())
        self._finish_removals(folder)
        oldest_first = iter(folder.job_ids())
        while step := list(islice(oldest_first, _STEP)):
            doomed = self._doomed(folder, step)
            self._store.removed_outputs.note(list(doomed), utc_now())
            self._remove(folder, doomed)
            if not doomed:
                break  # all that follow are younger
        self._report(folder.usage)

    def _report(self, usage: "_Usage") -> None:
        self._store.counters.put({OUTPUT_BYTES: usage.bytes, OUTPUT_FILES: usage.files})

    def _finish_removals(self, folder: "_Folder") -> None:
        """Remove what is said to be removed: a sweep was killed before it came to that."""
        job_ids = folder.job_ids()
        for first in range(0, len(job_ids), _STEP):
            half_gone = self._store.removed_outputs.which_of(job_ids[first : first + _STEP])
            for job_id in half_gone:
                folder.take(job_id)
            self._remove(folder, dict.fromkeys(half_gone, "unfinished"))
            for job_id in half_gone:
                folder.forget(job_id)

    def _doomed(self, folder: "_Folder", job_ids: list[str]) -> dict[str, str]:
        """Which of these jobs' outputs have to go, and why: age or size."""
        now, left_bytes = time.time(), folder.usage.bytes
        reasons: dict[str, str] = {}
        if not self._ttl_s and not (self._limit_bytes and left_bytes > self._limit_bytes):
            return reasons
        for job_id, ending in zip(job_ids, self._store.endings(job_ids), strict=True):
            is_old = bool(self._ttl_s) and now - folder.used_at(job_id) > self._ttl_s
            is_too_much = bool(self._limit_bytes) and left_bytes > self._limit_bytes
            if (is_old or is_too_much) and not (ending is not None and ending[0] in OPEN):
                reasons[job_id] = "age" if is_old else "size"
                left_bytes -= folder.take(job_id)
        return reasons

    def _remove(self, folder: "_Folder", reasons: dict[str, str]) -> None:
        for job_id, reason in reasons.items():
            # Another sweep may have been faster; what it has removed, it has counted.
            files = [file for file in folder.files_of(job_id) if self._storage.remove_output(file.name)]
            size = sum(file.bytes for file in files)
            if files:
                self._store.counters.add(REMOVED_JOBS, reason)
                self._store.counters.add(REMOVED_BYTES, reason, size)
                log.info("outputs_removed", job_id=job_id, reason=reason, files=len(files), bytes=size)


class _Usage:
    """How many files there are and their bytes. Names that share their data take those once, until the last goes.

    A file that gets its second name while the folder is read may be counted with both, until the next sweep.
    """

    def __init__(self) -> None:
        self._names: Counter[tuple[int, int]] = Counter()  # of shared data
        self.files = 0
        self.bytes = 0

    def add(self, file: OutputFile) -> None:
        self.files += 1
        if file.data_id is None or not self._names[file.data_id]:
            self.bytes += file.bytes
        if file.data_id is not None:
            self._names[file.data_id] += 1

    def remove(self, file: OutputFile) -> int:
        """Leave a file out of the account; the bytes that the disk has free without it."""
        self.files -= 1
        if file.data_id is not None:
            self._names[file.data_id] -= 1
            if self._names[file.data_id]:
                return 0
        self.bytes -= file.bytes
        return file.bytes


class _Folder:
    """All outputs by job: some 0.9 KB for a job of two files."""

    def __init__(self, outputs: Iterator[OutputFile]) -> None:
        self._jobs: dict[str, list[OutputFile]] = defaultdict(list)
        self.usage = _Usage()
        for file in outputs:
            self._jobs[file.job_id].append(file)
            self.usage.add(file)

    def job_ids(self) -> list[str]:
        """Those first whose outputs have not been used for the longest time; of equals, who had files before."""
        made_at = {job_id: min(file.used_at for file in files) for job_id, files in self._jobs.items()}
        return sorted(self._jobs, key=lambda job_id: (self.used_at(job_id), made_at[job_id]))

    def used_at(self, job_id: str) -> float:
        return max(file.used_at for file in self._jobs[job_id])

    def files_of(self, job_id: str) -> list[OutputFile]:
        return self._jobs[job_id]

    def take(self, job_id: str) -> int:
        """Leave a job's outputs out of the account; the bytes that the disk has free without them."""
        return sum(self.usage.remove(file) for file in self._jobs[job_id])

    def forget(self, job_id: str) -> None:
        """Know no more of a job that was taken."""
        del self._jobs[job_id]
