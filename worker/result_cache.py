"""The same cell is not computed twice: finished cells are found again by everything that decides their pixels.

The key of a cell is a digest of its prepared side's bytes, the model, the content of its weights, the precision, the
code that makes pixels of them, the options, and whose job it is: what one API key has sent says nothing to another.
An entry points at the files of the job that was last given the cell, and dies when one of them is gone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog

from shared.errors import AppError
from shared.jobs import CellRecord, Job, cell_name
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import KeptCell, Store
from shared.takeover import take_over
from worker.cells import LoadedEngine, parse_options
from worker.pictures import PreparedSides

log = structlog.get_logger(__name__)

#: Options that change nothing about a cell. All others are part of its key: one that is missing here makes the cache
#: find less, one that is here wrongly would deliver wrong pictures.
_NOT_OF_THE_CELL = {"models", "webhook"}
#: Libraries whose versions can move a pixel; triton comes with torch's CUDA builds only.
_LIBRARIES = ("torch", "numpy", "opencv-python-headless", "pillow", "simplejpeg", "triton")


@cache
def code_version() -> str:
    """Digest of the worker's own code and of the libraries that compute pixels."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            digest.update(f"{name}={version(name)}\0".encode())
    return digest.hexdigest()


class ResultCache:
    """Finds and keeps cells; a fault in here costs the shortcut, never the cell."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        storage: FolderStorage,
        prepared: PreparedSides,
        engines: Mapping[str, LoadedEngine],
    ) -> None:
        self.is_on = settings.result_cache_ttl_s > 0
        self._kept = store.kept_cells
        self._storage = storage
        self._prepared = prepared
        self._engines = engines

    def find(self, job: Job, cells: Sequence[tuple[str, str]]) -> dict[tuple[str, str], CellRecord]:
        """Those of the (side, model) cells that need not be computed, with their files under the job's own names."""
        if not self.is_on or not job.use_cache:
            return {}
        cells = [cell for cell in cells if cell[1] in self._engines]  # MODELS may have lost one since the job was made
        try:
            digests = [self._digest(job, side, model) for side, model in cells]
            kept = self._kept.get(digests) if digests else []
        except (AppError, OSError, ValueError):
            log.warning("cache_not_read", exc_info=True)
            return {}
        taken = {}
        for cell, digest, one in zip(cells, digests, kept, strict=True):
            record = None if one is None else self._take(job, cell, digest, one)
            if record is not None:
                taken[cell] = record
        return taken

    def _take(self, job: Job, cell: tuple[str, str], digest: str, kept: KeptCell) -> CellRecord | None:
        side, model = cell
        try:
            taken = take_over(self._storage, kept.record, (kept.job_id, kept.side, kept.model), job, side)
            if taken is None or taken[1] < kept.work_files:
                self._kept.drop(digest)
                return None
            record = taken[0]
            # The newest copy is the likeliest to stay.
            self._kept.put(digest, self._entry(job, side, model, record))
        except (AppError, OSError, ValueError):
            log.warning("cache_not_read", exc_info=True)
            return None
        log.info("cell_cached", cell=cell_name(side, model), from_job_id=kept.job_id)
        return record

    def entry(self, job: Job, side: str, model: str, record: CellRecord) -> tuple[str, KeptCell] | None:
        """What is to be kept of a cell that was just computed, and under which digest; None when nothing is."""
        if not self.is_on:
            return None
        try:
            return self._digest(job, side, model), self._entry(job, side, model, record)
        except OSError:  # the prepared side is gone
            log.warning("cache_not_written", exc_info=True)
            return None

    def _entry(self, job: Job, side: str, model: str, record: CellRecord) -> KeptCell:
        own = f"{cell_name(side, model)}-"
        work_files = sum(name.startswith(own) for name in self._storage.work_files(job.job_id))
        return KeptCell(job_id=job.job_id, side=side, model=model, record=record, work_files=work_files)

    def _digest(self, job: Job, side: str, model: str) -> str:
        engine = self._engines[model]
        made_of = (model, engine.weights_id, str(engine.dtype), code_version())
        return _digest(job.caller, self._prepared.digest(job.job_id, side), made_of, json.dumps(job.options))


@lru_cache(maxsize=1024)
def _digest(caller: str, picture: str, made_of: tuple[str, str, str, str], options: str) -> str:
    # Asked for before a cell is computed and after.
    model, weights, precision, code = made_of
    parts = {
        "caller": caller,
        "picture": picture,
        "model": model,
        "weights": weights,
        "precision": precision,
        "code": code,
        "options": parse_options(options).model_dump(mode="json", exclude=_NOT_OF_THE_CELL),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
