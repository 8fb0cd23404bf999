"""Many pairs, some at a time: send, wait, save, remember. What an earlier run did is not done again."""

import contextlib
import hashlib
import json
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from client.api import CutoutClient
from client.errors import CutoutError
from client.pairs import Pair
from client.replies import Job
from client.report import Row, failure_row, job_rows
from client.state import Entry, State

T = TypeVar("T")
R = TypeVar("R")

#: The service has the job on record, but no longer its files.
_FILES_GONE = frozenset({"output_expired", "output_not_found"})


@dataclass(frozen=True)
class Outcome:
    """How one pair ended.

    Attributes:
        status: the job's, or failed when it did not come to a job.
        rows: one for each cell, or one for the whole pair.
        seconds: what it took in this run.
        is_kept: it was done already.
    """

    pair: Pair
    status: str
    rows: list[Row]
    seconds: float = 0.0
    is_kept: bool = False

    @property
    def is_good(self) -> bool:
        """Whether every cutout is there."""
        return self.status == "succeeded"


class Batch:
    """Does pairs, each from wherever an earlier run has left it."""

    def __init__(
        self,
        client: CutoutClient,
        folder: Path,
        state: State,
        options: Mapping[str, Any],
        *,
        resume: bool = True,
        **how: Any,
    ) -> None:
        """
        Args:
            folder: where files go.
            options: of all pairs; a pair's own win.
            resume: False does everything again.
            how: what `CutoutClient.submit` takes beside pictures and options.
        """
        self._client, self._folder, self._state = client, folder, state
        self._options, self._resume, self._how = options, resume, how
        for part in folder.glob(".*.part"):  # what a killed run was downloading; the state keeps other runs out
            part.unlink(missing_ok=True)

    def do(self, pair: Pair, on_progress: Callable[[int], None]) -> Outcome:
        """Send, wait, save. What goes wrong is the outcome of this pair alone.

        Args:
            on_progress: called with the number of the pair's finished cells.
        Raises:
            CutoutError: `unauthorized`, which no other pair would fare better with.
        """
        started = time.monotonic()
        try:
            outcome = self._do(pair, on_progress)
        except CutoutError as error:
            if error.code == "unauthorized":
                raise
            outcome = Outcome(pair, "failed", [failure_row(pair.id, error.code, error.detail, error.job_id or "")])
        except OSError as exc:
            outcome = Outcome(pair, "failed", [failure_row(pair.id, "file_error", f"{exc.filename}: {exc.strerror}")])
        return replace(outcome, seconds=time.monotonic() - started)

    def _do(self, pair: Pair, on_progress: Callable[[int], None]) -> Outcome:
        options = {**self._options, **pair.options}
        # Read once: what is hashed is what is sent, whatever happens to the file meanwhile.
        sides = {side: p.read_bytes() if isinstance(p, Path) else p for side, p in pair.sides.items()}
        fingerprint = _fingerprint(pair.id, sides, options)
        known = self._state.get(pair.id) if self._resume else None
        if known is not None and known.fingerprint != fingerprint:
            known = None
        if known is not None and known.is_done(self._folder):
            return Outcome(pair, known.status, [Row(**row) for row in known.rows], is_kept=True)

        entry = Entry(str(pair.id), fingerprint, "sending")
        job = self._take_up(known)
        if job is not None:
            try:
                return self._finish(pair, job, entry, on_progress)
            except CutoutError as error:
                if error.code not in _FILES_GONE:
                    raise
        # A key that was sent before may have arrived: with it, the job is not made twice.
        key = known.key if known is not None and known.step == "sending" else uuid.uuid4().hex
        entry = replace(entry, key=key)
        self._state.record(entry)
        job = self._client.submit(
            pair.id, sides.get("front"), sides.get("back"), options, idempotency_key=key, **self._how
        )
        return self._finish(pair, job, entry, on_progress)

    def _take_up(self, known: Entry | None) -> Job | None:
        """The job of an earlier run, when it can still give all cutouts."""
        if known is None or not known.job_id:
            return None
        try:
            job = self._client.get(known.job_id)
            if not job.is_final or job.status == "succeeded":
                return job
            if job.status != "partial":
                return None
            # By this name also a run that was killed before it had the answer takes up the job it has made.
            return self._client.retry(job.job_id, idempotency_key=f"retry-{job.job_id}")
        except CutoutError as error:
            if error.retryable:
                raise
            return None  # no longer on record, or not to be retried

    def _finish(self, pair: Pair, job: Job, entry: Entry, on_progress: Callable[[int], None]) -> Outcome:
        """Wait for a job, save what it gives."""
        entry = replace(entry, step="sent", job_id=job.job_id)
        self._state.record(entry)
        job = self._client.wait(job.job_id, on_progress=on_progress)
        files = self._client.download(job, self._folder, name=str(pair.id))
        rows = job_rows(job, files)
        sizes = {path.name: path.stat().st_size for path in files.values()}
        entry = replace(entry, step="ended", status=job.status, rows=[row.to_json() for row in rows], files=sizes)
        self._state.record(entry)
        return Outcome(pair, job.status, rows)


def _fingerprint(id: int | str, sides: Mapping[str, bytes | str], options: Mapping[str, Any]) -> str:
    """The same for the same task: pictures by their bytes or their address, and options."""
    hashed = {
        side: hashlib.sha256(picture).hexdigest() if isinstance(picture, bytes) else picture
        for side, picture in sides.items()
    }
    return hashlib.sha256(json.dumps([id, hashed, options], sort_keys=True).encode()).hexdigest()


def in_parallel(items: Sequence[T], do: Callable[[T], R], concurrency: int) -> Iterator[R]:
    """What `do` gives for every item, in the order they are finished, `concurrency` at a time.

    Its threads do not keep the process alive: Ctrl-C ends it at once, whatever they wait for.

    Raises:
        BaseException: whatever `do` raises first.
    """
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    done: queue.SimpleQueue[R | _Raised] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = waiting.get_nowait()
                try:
                    done.put(do(item))
                except BaseException as exc:
                    done.put(_Raised(exc))

    for number in range(min(concurrency, len(items))):
        threading.Thread(target=work, name=f"pairs-{number}", daemon=True).start()
    for _ in items:
        result = done.get()
        if isinstance(result, _Raised):
            raise result.error
        yield result


@dataclass(frozen=True)
class _Raised:
    error: BaseException
