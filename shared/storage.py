"""Where result files and uploads live: a folder now, behind a small seam that an object store can fill later.

    outputs/design_{id}_{job_id}_{side}_{model}.png    results, under a name that only the job decides
    outputs/.work/{job_id}/                            uploads, prepared sides, small copies for review (*.npy); they
                                                       go some time after the job has ended (worker/sweeper.py)
    outputs/.extracted/                                answers of Gemini, kept for equal pictures; never served

Files are written beside their place and renamed, so a reader sees a whole file or none, and a task that runs twice
leaves the same result.
"""

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from shared.errors import OutputNotFound, OutputNotWritten
from shared.jobs import JOB_ID

#: The only names that are ever served: no dots, slashes or other ways out of the folder, and no kind that browsers run.
OUTPUT_NAME = re.compile(
    rf"design_-?[A-Za-z0-9_-]{{1,64}}_({JOB_ID.pattern})_(?:front|back)_[a-z0-9]+(?:_[a-z0-9]+)*\.(?:png|webp)"
)
_WORK = ".work"
_WORK_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(?:\.[A-Za-z0-9]{1,16})?")

#: What link() says where a file system has no hard links, or the file too many of them.
_NO_LINKS = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
_COPY_BYTES = 1 << 20

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the process may not write there; check the folder's owner",
    errno.EFBIG: "the file is larger than the file system allows",
}


def output_name(client_id: int | str, job_id: str, side: str, model: str, ext: str = "png") -> str:
    """`design_{id}_{job_id}_{side}_{model}.png`: derived from the job alone, so a second run overwrites the first."""
    return f"design_{client_id}_{job_id}_{side}_{model}.{ext}"


def name_of(url: str) -> str:
    """The name of an output, from its address."""
    return url.partition("?")[0].rpartition("/")[2]


def job_of(name: str) -> str | None:
    """The job that an output belongs to; None when this is not the name of one."""
    # Greedy: an id of the client's that looks like another job's name cannot stand for that job.
    match = OUTPUT_NAME.fullmatch(name)
    return match[1] if match else None


@dataclass(frozen=True, slots=True)
class OutputFile:
    """An output as the folder shows it.

    Attributes:
        job_id: whose it is.
        data_id: the same for names that share their data on the disk; it takes `bytes` once. None for a name that
            shares with no other.
        used_at: when it was made, or last given to another job (Unix time, s).
    """

    name: str
    job_id: str
    data_id: tuple[int, int] | None
    bytes: int
    used_at: float


class Storage(Protocol):
    """What the service needs of a place for outputs."""

    def url(self, name: str) -> str: ...
    def write_atomic(self, name: str, data: bytes | Iterable[bytes]) -> int: ...
    def open_output(self, name: str) -> BinaryIO: ...


class FolderStorage:
    """Outputs in a folder that API and worker share, served by the API under `{base_url}/outputs/`."""

    def __init__(self, outputs_dir: Path, base_url: str) -> None:
        self._dir = Path(outputs_dir).resolve()
        self._work = self._dir / _WORK
        self._base_url = base_url.rstrip("/")

    @property
    def outputs_dir(self) -> Path:
        """The folder, absolute."""
        return self._dir

    # --- outputs ----------------------------------------------------------------------------------------------
    output_name = staticmethod(output_name)

    def url(self, name: str) -> str:
        """The public address of an output."""
        return f"{self._base_url}/outputs/{name}"

    def path(self, name: str) -> Path:
        """Where an output is, or will be.

        Raises:
            OutputNotFound: the name is not that of an output, so it could lead out of the folder.
        """
        if not OUTPUT_NAME.fullmatch(name):
            raise OutputNotFound(f"There is no output {name[:200]!r}")
        return self._dir / name

    def open_output(self, name: str) -> BinaryIO:
        """An output, open for reading.

        Raises:
            OutputNotFound: there is no such output.
        """
        try:
            return self.path(name).open("rb")
        except FileNotFoundError as exc:
            raise OutputNotFound(f"There is no output {name}") from exc

    def write_atomic(self, name: str, data: bytes | Iterable[bytes]) -> int:
        """Write an output, whole or not at all, and return its size in bytes.

        Raises:
            OutputNotWritten: the file could not be written; the message says why (a full disk, ...).
        """
        return _write(self.path(name), data)

    def link_output(self, name: str, new_name: str) -> None:
        """Give an output a second name that lives on its own: removing one leaves the other.

        Its age begins anew, under both names: they share their data, and so their times.

        Raises:
            OutputNotFound: there is no such output. OutputNotWritten: the folder takes no more.
        """
        _link(self.path(name), self.path(new_name))
        with contextlib.suppress(OSError):
            os.utime(self.path(new_name))

    def outputs(self) -> Iterator[OutputFile]:
        """Every output there is, in no order; work folders, caches and unfinished files are none."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._dir) as entries:
            for entry in entries:
                job_id = job_of(entry.name)
                if job_id is not None:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        data_id = None if status.st_nlink == 1 else (status.st_dev, status.st_ino)
                        yield OutputFile(entry.name, job_id, data_id, status.st_size, status.st_mtime)

    def remove_output(self, name: str) -> bool:
        """Remove one output; False when it was gone already."""
        try:
            self.path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def remove_outputs(self, job_id: str, *, cell: str = "") -> None:
        """Remove every output of a job, or of one cell of it (`front_rmbg`)."""
        pattern = re.compile(rf"design_.*_{re.escape(job_id)}_{f'{cell}[_.]' if cell else ''}.*")
        self._remove_files(self._dir, lambda entry: bool(pattern.fullmatch(entry.name)))

    def remove_job(self, job_id: str) -> None:
        """Remove all files of a job: its outputs and its work folder."""
        self.remove_outputs(job_id)
        self.remove_work(job_id)

    def remove_unfinished(self, older_than_s: float) -> int:
        """Remove outputs that a killed process was writing that long ago, and say how many there were."""
        limit = time.time() - older_than_s
        return self._remove_files(
            self._dir, lambda entry: entry.name.endswith(".part") and entry.stat(follow_symlinks=False).st_mtime < limit
        )

    @staticmethod
    def _remove_files(folder: Path, is_doomed: Callable[[os.DirEntry[str]], bool]) -> int:
        removed = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another sweep was faster
                    if entry.is_file(follow_symlinks=False) and is_doomed(entry):
                        Path(entry.path).unlink()
                        removed += 1
        return removed

    # --- a job's work folder ----------------------------------------------------------------------------------
    def work_dir(self, job_id: str) -> Path:
        """The job's own folder for uploads and prepared sides; made when missing."""
        path = self.work_path(job_id)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise not_written(path.name, exc) from exc
        return path

    def write_work(self, job_id: str, name: str, data: bytes | Iterable[bytes]) -> str:
        """Write a file of the job's work folder, whole or not at all.

        Returns:
            Its path relative to the outputs folder, as `Source.path` wants it.
        Raises:
            OutputNotWritten: the file could not be written. Whatever `data` raises passes through.
        """
        _write(self._work_file(job_id, name), data)
        return f"{_WORK}/{job_id}/{name}"

    def write_scratch(self, job_id: str, name: str, data: bytes) -> None:
        """Write a file of the job's work folder that the job can do without: neither flushed to disk nor renamed.

        For small notes from one step to the next, whose reader comes later and knows a torn file when it sees one.

        Raises:
            OutputNotWritten: the file could not be written.
        """
        path = self._work_file(job_id, name)
        try:
            try:
                path.write_bytes(data)
            except FileNotFoundError:
                self.work_dir(job_id)
                path.write_bytes(data)
        except OSError as exc:
            with contextlib.suppress(OSError):
                path.unlink()  # what was written of it takes room on a disk that has none
            raise not_written(path.name, exc) from exc

    def _work_file(self, job_id: str, name: str) -> Path:
        if not _WORK_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name for a work file")
        return self.work_path(job_id) / name

    def write_hidden(self, folder: str, name: str, data: bytes | Iterable[bytes]) -> None:
        """Write a file of a cache, whole or not at all.

        Raises:
            OutputNotWritten: the file could not be written.
        """
        if not folder.startswith(".") or not _WORK_NAME.fullmatch(name):
            raise ValueError(f"{folder}/{name} is not a name for a hidden file")
        _write(self._dir / folder / name, data)

    def source_path(self, relative: str) -> Path:
        """The absolute path of a `Source` of kind "file".

        Raises:
            OutputNotFound: the path is not inside a job's work folder.
        """
        work, _, rest = relative.partition("/")
        job_id, _, name = rest.partition("/")
        if work != _WORK or not JOB_ID.fullmatch(job_id) or not _WORK_NAME.fullmatch(name):
            raise OutputNotFound(f"{relative[:200]!r} is not a file of a job")
        return self._dir / relative

    def work_files(self, job_id: str) -> list[str]:
        """Names of the files in the job's work folder, without unfinished ones."""
        try:
            with os.scandir(self.work_path(job_id)) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith("."))
        except FileNotFoundError:
            return []

    def link_work(self, job_id: str, name: str, new_job_id: str, new_name: str) -> str:
        """Give another job a work file under a name of its own.

        Returns:
            Its path relative to the outputs folder, as `Source.path` wants it.
        Raises:
            OutputNotFound: there is no such file. OutputNotWritten: the folder takes no more.
        """
        if not _WORK_NAME.fullmatch(name) or not _WORK_NAME.fullmatch(new_name):
            raise ValueError(f"{name!r} or {new_name!r} is not a name for a work file")
        _link(self.work_path(job_id) / name, self.work_dir(new_job_id) / new_name)
        return f"{_WORK}/{new_job_id}/{new_name}"

    def work_folders(self) -> list[tuple[str, float]]:
        """(job id, seconds since something was last put into or taken out of it) of every work folder."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._work) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if JOB_ID.fullmatch(entry.name):
                        found.append((entry.name, time.time() - entry.stat(follow_symlinks=False).st_mtime))
        return found

    def remove_sources(self, job_id: str) -> None:
        """Remove uploads and prepared sides from the job's work folder; the small copies for review stay."""
        self._remove_files(self.work_path(job_id), lambda entry: not entry.name.endswith(".npy"))

    def remove_work(self, job_id: str) -> None:
        """Remove the job's work folder, if it is there."""
        shutil.rmtree(self.work_path(job_id), ignore_errors=True)

    def work_path(self, job_id: str) -> Path:
        """Where the job's own folder is, or will be."""
        if not JOB_ID.fullmatch(job_id):
            raise ValueError(f"{job_id!r} is not a job id")
        return self._work / job_id


def _write(path: Path, data: bytes | Iterable[bytes]) -> int:
    # A name of its own for each writer: two runs of one task must not write into each other's file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    is_left = True
    try:
        with _create(temporary) as file:
            size = 0
            for chunk in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
                size += file.write(chunk)
            file.flush()
            # API and worker may be different users, whatever the umask.
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        temporary.replace(path)
        is_left = False
        return size
    except OSError as exc:
        raise not_written(path.name, exc) from exc
    finally:
        if is_left:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _create(path: Path) -> BinaryIO:
    """A new file, in a folder that is made when it is missing; asking first would cost every write."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _link(path: Path, new_path: Path) -> None:
    try:
        try:
            os.link(path, new_path)
        except FileExistsError:  # from an earlier run of the same step
            new_path.unlink(missing_ok=True)
            os.link(path, new_path)
    except FileNotFoundError as exc:
        raise OutputNotFound(f"There is no file {path.name}") from exc
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise not_written(new_path.name, exc) from exc
        _copy(path, new_path)


def _copy(path: Path, new_path: Path) -> None:
    try:
        with path.open("rb") as file:
            _write(new_path, iter(lambda: file.read(_COPY_BYTES), b""))
    except FileNotFoundError as exc:
        raise OutputNotFound(f"There is no file {path.name}") from exc


def not_written(what: str, exc: OSError) -> OutputNotWritten:
    """The error that says why something could not be written."""
    reason = _REASONS.get(exc.errno or 0, exc.strerror or str(exc))
    return OutputNotWritten(f"{what} could not be written: {reason}")
