"""CutoutClient: the service's HTTP API as typed calls."""

import json
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from client.errors import UNEXPECTED_REPLY, WAIT_TIMEOUT, CutoutError
from client.events import SILENCE_S, read_events
from client.files import download_file
from client.pairs import is_address
from client.replies import FINAL_CELLS, Event, Health, Job, JobPage, Reply
from client.transport import Transport, read_object

#: A side: an http(s) URL, a data: URI, a path, or the bytes of a picture.
Picture = str | Path | bytes

Answer = TypeVar("Answer", bound=Reply)

#: Pause between two looks at a job (s): the first, and the longest.
_POLL_S, _LONGEST_POLL_S = 0.25, 2.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
_NO_SUCH_ROUTE = frozenset({"not_found", "method_not_allowed"})


class CutoutClient:
    """One service. Safe to share between threads; close it, or use it as a context manager.

    Every call raises CutoutError when the service refuses, fails or cannot be reached.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8001",
        api_key: str | None = None,
        *,
        timeout_s: float = 60,
        retry_s: float = 120,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent yet.

        Args:
            api_key: sent as Bearer to base_url's origin, and nowhere else.
            timeout_s: longest silence of the service during one request (s).
            retry_s: how long a request is tried again when the connection is lost or the service is busy (s). It
                waits as long as Retry-After says, or gives up at once when that is longer than the time left.
        Raises:
            ValueError: base_url or api_key cannot be used.
        """
        self._transport = Transport(base_url, api_key, timeout_s, retry_s, sleep)
        #: Becomes False when the service turns out to have no such route.
        self._has_events = True

    @property
    def base_url(self) -> str:
        """Address of the service, without a slash at its end."""
        return self._transport.base_url

    def close(self) -> None:
        """Close the kept connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- a job from its pictures to its files -----------------------------------------------------------------
    def process(
        self,
        id: int | str,
        front: Picture | None = None,
        back: Picture | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
        cancel_after_s: int | None = None,
        fresh: bool = False,
    ) -> Job:
        """Send one design and wait for its end.

        Args:
            timeout_s: how long to wait (s); None: as long as it takes.
            id, options, idempotency_key, cancel_after_s, fresh: see `submit`.
        Returns:
            The job, with at least one cutout: succeeded or partial.
        Raises:
            CutoutError: the job has no cutout; `wait_timeout`: it goes on, its id is in `job_id`.
        """
        how: dict[str, Any] = {"idempotency_key": idempotency_key, "cancel_after_s": cancel_after_s, "fresh": fresh}
        job = self.wait(self.submit(id, front, back, options, **how).job_id, timeout_s=timeout_s)
        job.raise_for_status()
        return job

    def submit(
        self,
        id: int | str,
        front: Picture | None = None,
        back: Picture | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        cancel_after_s: int | None = None,
        fresh: bool = False,
    ) -> Job:
        """Send one design and return at once.

        Args:
            id: your own id. Beside files, a string of digits arrives as a number, as forms have no types.
            options: see the README, "Options".
            idempotency_key: the same key and the same design are the same job. Made up when left out, so that a lost
                answer does not make a second job.
            cancel_after_s: the job expires when it has not ended by then (s).
            fresh: compute every cell, even where the service has the same one already.
        Raises:
            ValueError: neither side is given.
            OSError: a file cannot be read.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        if cancel_after_s is not None:
            headers["Cancel-After"] = f"{cancel_after_s}s"
        if fresh:
            headers["Cache-Control"] = "no-cache"
        content = _content(id, {"front": front, "back": back}, dict(options or {}))
        return self._send("/process", headers=headers, **content)

    def _send(self, path: str, *, headers: Mapping[str, str], **request: Any) -> Job:
        """The job that a request makes."""
        headers = {**headers, "Prefer": "respond-async"}
        try:
            with self._transport.request("POST", path, ok=(200, 202), headers=headers, **request) as reply:
                body = read_object(reply)
        except CutoutError as error:
            if error.job_id is None:
                raise
            return self.get(error.job_id)  # a repeated key, whose job has failed meanwhile
        return _read(Job, body) if reply.status_code == 202 else self.get(str(body.get("job_id")))

    def wait(
        self, job_id: str, *, timeout_s: float | None = None, on_progress: Callable[[int], None] | None = None
    ) -> Job:
        """The job when it has ended, well or not.

        Reads the job's events where the service offers them, and asks again and again where not.

        Args:
            on_progress: called with the number of finished cells, whenever there are more.
        Raises:
            CutoutError: `wait_timeout` when it has not ended after timeout_s; the job goes on.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        most = 0

        def report(done: int) -> None:
            nonlocal most
            if done > most and on_progress is not None:
                on_progress(done)
            most = max(most, done)

        if self._has_events:
            self._watch(job_id, deadline - SILENCE_S, report)
        pause_s = _POLL_S
        while not (job := self.get(job_id)).is_final:
            report(job.progress.done)
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise CutoutError(
                    WAIT_TIMEOUT, f"The job is {job.status} after {timeout_s:g} s", retryable=True, job_id=job_id
                )
            self._transport.sleep(min(pause_s, remaining_s))
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
        report(job.progress.done)
        return job

    def _watch(self, job_id: str, until: float, report: Callable[[int], None]) -> None:
        """Return when the job has ended, or its events cannot be read (any longer)."""
        finished: set[str] = set()
        try:
            for event in read_events(self._transport, _path(job_id) + "/events", until=until, repeat="never"):
                if event.type == "cell" and event.data.get("status") in FINAL_CELLS:
                    finished.add(str(event.data.get("cell")))
                    report(len(finished))
        except CutoutError as error:
            if error.code == "job_not_found":
                raise
            if error.code in _NO_SUCH_ROUTE:
                self._has_events = False

    def download(self, job: Job, folder: str | Path, *, name: str | None = None) -> dict[str, Path]:
        """Save all files of a job.

        Args:
            folder: made when it is not there.
            name: what the files' names begin with; the job's `id` when left out.
        Returns:
            The files: `front_rmbg` -> folder/123_front_rmbg.png, `front_rmbg_print`, ..., `contact_sheet`.
        Raises:
            CutoutError: the service refuses (`output_expired`: its retention is over), or a file does not come whole.
            OSError: a file cannot be written.
        """
        stem = _checked(str(job.id if name is None else name), _NAME)
        found, files = _addresses(job), {}
        for file_name, (url, size_bytes) in found.items():
            suffix = _checked(PurePosixPath(urlsplit(url).path).suffix, _SUFFIX)
            # Names are ours: what a service says must not lead out of the folder.
            path = Path(folder) / f"{stem}_{_checked(file_name, _NAME)}{suffix}"
            try:
                self.download_file(url, path, size_bytes)
            except CutoutError as error:
                if error.code != "output_url_expired":
                    raise
                fresh = _addresses(self.get(job.job_id))  # signed anew
                self.download_file(fresh[file_name][0], path, size_bytes)
            files[file_name] = path
        return files

    def download_file(self, url: str, path: str | Path, size_bytes: int | None = None) -> Path:
        """Save one file: streamed beside `path`, checked (size, Content-Length, signature), renamed.

        Raises:
            CutoutError, OSError: as for `download`.
        """
        return download_file(self._transport, url, Path(path), size_bytes)

    # --- jobs that are there ----------------------------------------------------------------------------------
    def get(self, job_id: str) -> Job:
        """How the job stands."""
        return _read(Job, self._transport.json("GET", _path(job_id)))

    def events(self, job_id: str, after: str | None = None) -> Iterator[Event]:
        """The job's changes as they come, to the last one; `after` is the id of the last one that you have seen."""
        return read_events(self._transport, _path(job_id) + "/events", after)

    def list(self, *, status: str | Sequence[str] = (), id: int | str | None = None, page: int = 50) -> Iterator[Job]:
        """All jobs, newest first, fetched page by page as you go on; those of your API key, where keys are used.

        Args:
            status, id: only those with this status (or one of these), with this id of yours.
            page: how many to fetch at once, 1 to 100.
        """
        params: dict[str, Any] = {"status": status, "id": id, "limit": page}
        while True:
            found = _read(JobPage, self._transport.json("GET", "/jobs", params=params))
            yield from found.jobs
            if found.next_cursor is None:
                return
            params["cursor"] = found.next_cursor

    def cancel(self, job_id: str) -> Job:
        """Stop the job after the steps that run; finished cells stay."""
        return _read(Job, self._transport.json("POST", f"{_path(job_id)}/cancel", ok=(200, 202)))

    def delete(self, job_id: str) -> None:
        """Remove the job and its files.

        Raises:
            CutoutError: `job_not_found`, also when an earlier try got through and its answer was lost.
        """
        self._transport.request("DELETE", _path(job_id), ok=(200, 202, 204)).close()

    def retry(self, job_id: str, *cells: str, idempotency_key: str | None = None) -> Job:
        """A new job that computes the failed cells of one that has ended, or those that you name.

        What the old one delivered is the new one's from the start.

        Args:
            idempotency_key: the same key for the same retry is the same new job. Made up when left out, so that a lost
                answer does not make a second job.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._send(f"{_path(job_id)}/retry", params={"cell": cells}, headers=headers)

    def health(self) -> Health:
        """Whether jobs are being done. A service that is not ready is an answer too, not an error."""
        return _read(Health, self._transport.json("GET", "/health", ok=(200, 503), repeat="never"))


def _addresses(job: Job) -> dict[str, tuple[str, int | None]]:
    """All files of a job: name -> (address, size in bytes where it is known)."""
    found: dict[str, tuple[str, int | None]] = {}
    for name, cell in job.cells.items():
        if cell.url:
            found[name] = (cell.url, cell.bytes)
        found |= {f"{name}_{kind}": (url, None) for kind, url in cell.files.items()}
    if job.contact_sheet:
        found["contact_sheet"] = (job.contact_sheet, None)
    return found


def _path(job_id: str) -> str:
    if not _NAME.fullmatch(job_id):
        raise CutoutError("job_not_found", f"{job_id[:100]!r} is not a job id", status=404)
    return f"/jobs/{job_id}"


def _checked(text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise CutoutError(UNEXPECTED_REPLY, f"{text[:100]!r} cannot be part of a name")
    return text


def _read(kind: type[Answer], body: Mapping[str, Any]) -> Answer:
    try:
        return kind.model_validate(body)
    except ValidationError as exc:
        raise CutoutError(UNEXPECTED_REPLY, f"The reply is no {kind.__name__}: {exc.errors()[0]['msg']}") from exc


def _content(id: int | str, sides: Mapping[str, Picture | None], options: dict[str, Any]) -> dict[str, Any]:
    """What requests needs for the body: JSON when there are addresses only, else a form."""
    given = {side: picture for side, picture in sides.items() if picture is not None}
    if not given:
        raise ValueError("give front, back or both")
    urls = {side: picture for side, picture in given.items() if isinstance(picture, str) and is_address(picture)}
    if urls.keys() == given.keys():
        return {"json": {"id": id, "output": urls, "options": options}}
    data = {"id": str(id), **urls, "options": json.dumps(options)}
    files = {}
    for side, picture in given.items():
        if side not in urls:
            content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
            files[side] = (side, content)  # not the file's own name: nobody else needs to know it
    return {"data": data, "files": files}
