"""Answers that were paid for: kept on the outputs volume, used again for the same question, locked while one is asked.

    outputs/.extracted/{sha-256}.answer    one line of JSON (tokens, calls), then the picture as the model sent it
    outputs/.extracted/{3 digits}.lock     held with flock while an answer is being asked for

Pruned after each answer, and by the sweeper where no more come.

A kernel lock and not one in Redis: the kernel lets go of it at the very moment a worker is killed, where a lease would
have to be guessed longer than the longest call and keep the next worker waiting for nothing. All workers of one outputs
volume share it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from shared.errors import ExtractionBusy
from shared.settings import Settings
from shared.storage import FolderStorage, not_written

log = structlog.get_logger(__name__)

_FOLDER = ".extracted"
#: How often a lock that is held is tried again (s).
_LOCK_PAUSE_S = 0.1
#: A half written file that nobody can be writing any more (s).
_ABANDONED_S = 3600.0


@dataclass(frozen=True)
class Answer:
    """A model's picture, and what it cost: {"calls": n, "tokens": {...} or None}."""

    image: bytes
    cost: dict[str, Any]

    def to_bytes(self) -> bytes:
        return json.dumps(self.cost).encode() + b"\n" + self.image

    @classmethod
    def from_bytes(cls, data: bytes) -> "Answer":
        head, _, image = data.partition(b"\n")
        return cls(image, json.loads(head))


def question_key(source: bytes, *words: str) -> str:
    """The name of an answer: sha-256 over the source file and everything else that decides what is asked."""
    digest = hashlib.sha256(source)
    for word in words:
        digest.update(b"\0" + hashlib.sha256(word.encode()).digest())
    return digest.hexdigest()


class Answers:
    """The cache; safe for threads and processes."""

    def __init__(self, storage: FolderStorage, *, ttl_s: float, limit_bytes: int) -> None:
        self._storage = storage
        self._dir = storage.outputs_dir / _FOLDER
        self._ttl_s = ttl_s
        self._limit_bytes = limit_bytes

    @classmethod
    def from_settings(cls, settings: Settings, storage: FolderStorage) -> Self:
        """The cache as the settings bound it."""
        return cls(storage, ttl_s=settings.extract_cache_ttl_s, limit_bytes=settings.extract_cache_mb * 1_000_000)

    def get(self, key: str) -> Answer | None:
        """An answer that is not older than its lifetime, or None."""
        path = self._path(key)
        try:
            if path.stat().st_mtime < time.time() - self._ttl_s:
                return None
            return Answer.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            log.warning("answer_unreadable", path=path.name, detail=str(exc))
            return None

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer, whole or not at all, and let go of what is too old or too much.

        Raises:
            OutputNotWritten: the volume does not take it.
        """
        self._storage.write_hidden(_FOLDER, f"{key}.answer", answer.to_bytes())
        self.prune(keep=key)

    def forget(self, key: str) -> None:
        """Let go of an answer that turned out to be of no use."""
        self._path(key).unlink(missing_ok=True)

    def prune(self, keep: str = "") -> None:
        """Remove what is too old, the oldest of what is too much, and files that were never finished.

        Args:
            keep: an answer that stays in any case.
        """
        found, kept_bytes, oldest = [], 0, time.time() - self._ttl_s
        for path in self._dir.glob("*.answer"):
            with contextlib.suppress(OSError):  # another worker was faster
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        for written_at, size, path in sorted(found, reverse=True):
            kept_bytes += size
            if path.stem != keep and (written_at < oldest or kept_bytes > self._limit_bytes):
                path.unlink(missing_ok=True)
        for path in self._dir.glob(".*.part"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED_S:  # its writer was killed
                    path.unlink()

    @contextmanager
    def lock(self, key: str, patience_s: float) -> Iterator[None]:
        """Be the only one to ask this question inside the block.

        Raises:
            ExtractionBusy: another held it for longer than `patience_s`. OutputNotWritten: there is no room for a lock.
        """
        path = self._dir / f"{key[:3]}.lock"
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            # 4096 files that stay are simpler than files that must be removed while nobody waits for them.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            raise not_written(path.name, exc) from exc
        try:
            deadline = time.monotonic() + patience_s
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise ExtractionBusy(f"the same design was being extracted for more than {patience_s:.0f} s")
                time.sleep(_LOCK_PAUSE_S)
            yield
        finally:
            os.close(descriptor)  # lets go of the lock

    def _path(self, key: str) -> Path:
        return self._dir / f"{key}.answer"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
