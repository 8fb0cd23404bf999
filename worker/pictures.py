"""Prepared sides: the validated original on the shared volume, and its pixels kept in memory for its other cells."""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.storage import FolderStorage
from worker.images import Picture, decode

_NAME = "{side}.prepared"


class PictureCache:
    """The most recently used pictures, at most `limit_bytes` of pixels; safe for threads.

    A picture that several threads ask for at once is decoded once: the others wait for the first.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._busy: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str, load: Callable[[], Picture]) -> Picture:
        """The picture under `key`, from memory or by `load`, whose errors pass through."""
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            picture = load()
            self.put(key, picture)
            return picture

    def put(self, key: str, picture: Picture) -> None:
        """Keep a picture, letting go of the least recently used ones."""
        with self._lock:
            self._drop(key)
            self._kept[key] = picture
            self._bytes += picture.nbytes
            while self._bytes > self._limit_bytes and self._kept:
                self._drop(next(iter(self._kept)))

    def forget(self, prefix: str) -> None:
        """Let go of every picture whose key begins with `prefix`."""
        with self._lock:
            for key in [key for key in self._kept if key.startswith(prefix)]:
                self._drop(key)
            for key in [key for key in self._busy if key.startswith(prefix)]:
                del self._busy[key]

    def _drop(self, key: str) -> None:
        picture = self._kept.pop(key, None)
        if picture is not None:
            self._bytes -= picture.nbytes


class PreparedSides:
    """Writes and reads prepared sides of jobs."""

    def __init__(self, storage: FolderStorage, *, pixel_limit: int, cache_bytes: int) -> None:
        self._storage = storage
        self._pixel_limit = pixel_limit
        self._cache = PictureCache(cache_bytes)

    def exists(self, job_id: str, side: str) -> bool:
        """True when this side was prepared before, by this worker or another."""
        return self._path(job_id, side).is_file()

    def save(self, job_id: str, side: str, data: bytes, picture: Picture | None = None) -> Picture:
        """Check that the file decodes, then store it.

        Args:
            picture: the file's pixels, when it has been decoded already.
        Raises:
            SourceNotAnImage, SourceTooLarge: from decoding.
            OutputNotWritten: the volume does not take it.
        """
        if picture is None:
            picture = decode(data, pixel_limit=self._pixel_limit)
        self._storage.write_work(job_id, _NAME.format(side=side), data)
        self._cache.put(f"{job_id}/{side}", picture)
        return picture

    def load(self, job_id: str, side: str) -> Picture:
        """The pixels of a prepared side; decoded once however many cells ask.

        Raises:
            SourceNotAnImage, SourceTooLarge: from decoding.
            OSError: the file is gone.
        """
        return self._cache.get(
            f"{job_id}/{side}",
            lambda: decode(self._path(job_id, side).read_bytes(), pixel_limit=self._pixel_limit),
        )

    def save_array(self, job_id: str, name: str, array: npt.NDArray[np.uint8]) -> None:
        """Keep a small picture for the end of the job, under a name of the job's own.

        Raises:
            OutputNotWritten: the volume does not take it.
        """
        file = io.BytesIO()
        np.save(file, array)
        self._storage.write_work(job_id, f"{name}.npy", file.getvalue())

    def load_array(self, job_id: str, name: str) -> npt.NDArray[np.uint8] | None:
        """A small picture that was kept, or None."""
        try:
            array: npt.NDArray[np.uint8] = np.load(self._storage.work_dir(job_id) / f"{name}.npy", allow_pickle=False)
        except (FileNotFoundError, ValueError):
            return None
        return array

    def digest(self, job_id: str, side: str) -> str:
        """SHA-256 of a prepared side's file.

        Raises:
            OSError: the file is gone.
        """
        with self._path(job_id, side).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def forget(self, job_id: str) -> None:
        """Let go of the pixels of a job that has ended; its files are the sweeper's."""
        self._cache.forget(f"{job_id}/")

    def _path(self, job_id: str, side: str) -> Path:
        return self._storage.work_dir(job_id) / _NAME.format(side=side)
