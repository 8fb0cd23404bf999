"""Prepared sides: the validated original on the shared volume, and its pixels kept in memory for its other cells."""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from shared.storage import FolderStorage
from worker.budget import PixelBudget
from worker.images import Picture, PictureSize, decode, read_size

_NAME = "{side}.prepared"


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


class PictureCache:
    """The most recently used pictures and what is made of them, at most `limit_bytes`; safe for threads.

    What several threads ask for at once is made once: the others wait for the first.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, _Sized] = OrderedDict()
        self._busy: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str, load: Callable[[], T]) -> T:
        """What is kept under `key`, from memory or by `load`, whose errors pass through. One key, one type."""
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return cast(T, self._kept[key])
            value = load()
            self.put(key, value)
            return value

    def find(self, key: str) -> _Sized | None:
        """What is kept under `key`, if anything."""
        with self._lock:
            return self._kept.get(key)

    def put(self, key: str, value: _Sized) -> None:
        """Keep a value, letting go of the least recently used ones."""
        with self._lock:
            self._drop(key)
            self._kept[key] = value
            self._bytes += value.nbytes
            while self._bytes > self._limit_bytes and self._kept:
                self._drop(next(iter(self._kept)))

    def forget(self, prefix: str) -> None:
        """Let go of everything whose key begins with `prefix`."""
        with self._lock:
            for key in [key for key in self._kept if key.startswith(prefix)]:
                self._drop(key)
            for key in [key for key in self._busy if key.startswith(prefix)]:
                del self._busy[key]

    def _drop(self, key: str) -> None:
        value = self._kept.pop(key, None)
        if value is not None:
            self._bytes -= value.nbytes


@lru_cache(maxsize=256)
def _digest(path: Path, inode: int, mtime_ns: int, size: int) -> str:
    """SHA-256 of a file, read once for all cells that ask as long as it stays the same file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=256)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """How a .npy file of 8-bit numbers begins."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


class PreparedSides:
    """Writes and reads prepared sides of jobs; all decoding is within the budget of pixels in flight."""

    def __init__(self, storage: FolderStorage, budget: PixelBudget, *, pixel_limit: int, cache_bytes: int) -> None:
        self._storage = storage
        self._budget = budget
        self._pixel_limit = pixel_limit
        self._cache = PictureCache(cache_bytes)

    def exists(self, job_id: str, side: str) -> bool:
        """True when this side was prepared before, by this worker or another."""
        return self._path(job_id, side).is_file()

    def save(
        self, job_id: str, side: str, data: bytes, picture: Picture | None = None, *, same_as: str | None = None
    ) -> Picture:
        """Check that the file decodes, then store it.

        Args:
            picture: the file's pixels, when it has been decoded already.
            same_as: name of a file in the job's work folder with the same bytes, which need not be written again.
        Raises:
            SourceNotAnImage, SourceTooLarge: from decoding.
            OutputNotWritten: the volume does not take it.
        """
        if picture is None:
            size = read_size(data, pixel_limit=self._pixel_limit)
            with self._budget.hold(size.width * size.height):
                picture = decode(data, pixel_limit=self._pixel_limit)
                return self.save(job_id, side, data, picture, same_as=same_as)
        name = _NAME.format(side=side)
        if same_as is None:
            self._storage.write_work(job_id, name, data)
        else:
            self._storage.link_work(job_id, same_as, job_id, name)
        self._cache.put(f"{job_id}/{side}", picture)
        return picture

    def size(self, job_id: str, side: str) -> PictureSize:
        """Size of a prepared side, without its pixels.

        Raises:
            OSError: the file is gone.
        """
        kept = self._cache.find(f"{job_id}/{side}")
        if isinstance(kept, Picture):
            return PictureSize(kept.width, kept.height)
        return read_size(self._path(job_id, side).read_bytes(), pixel_limit=self._pixel_limit)

    @contextmanager
    def open(self, job_id: str, side: str, pixels: int) -> Iterator[Picture]:
        """The pixels of a prepared side for as long as the block lasts; decoded once however many cells ask.

        Args:
            pixels: how many are worked on inside the block. It begins when the budget has room for them, and only then
                is the picture in memory.
        Raises:
            SourceNotAnImage, SourceTooLarge: from decoding.
            OSError: the file is gone.
        """
        path = self._path(job_id, side)
        with self._budget.hold(pixels):
            yield self._cache.get(f"{job_id}/{side}", lambda: decode(path.read_bytes(), pixel_limit=self._pixel_limit))

    @contextmanager
    def open_file(self, path: Path) -> Iterator[Picture]:
        """The pixels of another file of a job for as long as the block lasts; begins when the budget has room for them.

        Raises:
            SourceNotAnImage, SourceTooLarge: from decoding.
            OSError: the file is gone.
        """
        data = path.read_bytes()
        with self._budget.hold(read_size(data, pixel_limit=self._pixel_limit).pixels):
            yield decode(data, pixel_limit=self._pixel_limit)

    def derived(self, job_id: str, side: str, what: str, make: Callable[[], T]) -> T:
        """What cells of one side share, made once and kept as long as the side's pixels are."""
        return self._cache.get(f"{job_id}/{side}/{what}", make)

    def save_array(self, job_id: str, name: str, array: npt.NDArray[np.uint8]) -> None:
        """Keep a small picture for the end of the job, under a name of the job's own.

        Raises:
            OutputNotWritten: the volume does not take it.
        """
        self._storage.write_scratch(job_id, f"{name}.npy", _npy_header(array.shape) + array.tobytes())
        self._cache.put(f"{job_id}/{name}.npy", array)

    def load_array(self, job_id: str, name: str) -> npt.NDArray[np.uint8] | None:
        """A small picture that was kept, or None; from memory, where this worker has it still."""
        kept = self._cache.find(f"{job_id}/{name}.npy")
        if isinstance(kept, np.ndarray):
            return kept
        try:
            array: npt.NDArray[np.uint8] = np.load(self._storage.work_path(job_id) / f"{name}.npy", allow_pickle=False)
        except (FileNotFoundError, ValueError, EOFError):
            return None
        return array

    def digest(self, job_id: str, side: str) -> str:
        """SHA-256 of a prepared side's file.

        Raises:
            OSError: the file is gone.
        """
        path = self._path(job_id, side)
        state = path.stat()  # a rewritten file is renamed into place, so it has another number or time
        return _digest(path, state.st_ino, state.st_mtime_ns, state.st_size)

    def forget(self, job_id: str) -> None:
        """Let go of the pixels of a job that has ended; its files are the sweeper's."""
        self._cache.forget(f"{job_id}/")

    def _path(self, job_id: str, side: str) -> Path:
        return self._storage.work_path(job_id) / _NAME.format(side=side)
