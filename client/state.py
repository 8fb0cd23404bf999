"""What has been done, as JSON lines: appended at every step, so that a run that was cut short can go on."""

import json
import os
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from client.pairs import InputError

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

STATE_FILE = "state.jsonl"

#: sending: the request may have arrived; sent: the service has the job; ended: files and rows are final.
Step = Literal["sending", "sent", "ended"]


@dataclass(frozen=True)
class Entry:
    """How far one pair is.

    Attributes:
        fingerprint: of its pictures and options: with other ones it is another task.
        key: the idempotency key that it was sent with.
        status: the job's, when it has ended.
        rows: its cells in the report, when it has ended.
        files: name in the output folder -> size in bytes.
    """

    id: str
    fingerprint: str
    step: Step
    key: str = ""
    job_id: str = ""
    status: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)

    def is_done(self, folder: Path) -> bool:
        """Whether every cutout was made, and every file is still there."""
        if self.step != "ended" or self.status != "succeeded":
            return False
        paths = {folder / name: size for name, size in self.files.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


class State:
    """The state file of one output folder; a context manager that keeps other runs out.

    Safe to share between threads.
    """

    def __init__(self, folder: Path) -> None:
        """Read what earlier runs have left; lines that a crash cut short are passed over.

        Raises:
            InputError: another run is writing to this folder, or it cannot be written.
        """
        self._lock = threading.Lock()
        path = folder / STATE_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as exc:
            raise InputError([f"{path} cannot be written: {exc.strerror}"]) from exc
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                self._file.close()
                raise InputError([f"another run is writing to {folder}; wait for it, or choose another --out"]) from exc
        self._file.seek(0)
        text = self._file.read()
        self._entries = {entry.id: entry for entry in map(_read_line, text.splitlines()) if entry is not None}
        if text and not text.endswith(b"\n"):
            self._file.write(b"\n")  # else the next line would be glued to half of one

    def get(self, id: int | str) -> Entry | None:
        """The last thing known about a pair."""
        return self._entries.get(str(id))

    def record(self, entry: Entry) -> None:
        """Keep an entry, past a crash of this process right after."""
        line = json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._entries[entry.id] = entry
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Let other runs in."""
        with self._lock:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _read_line(line: bytes) -> Entry | None:
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError):
        return None
