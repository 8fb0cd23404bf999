"""Finished cells by what they were made of, so that the same cell need not be computed again."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from shared.jobs import CellRecord
from shared.store.connection import translated


class KeptCell(BaseModel):
    """Where a finished cell is.

    Attributes:
        job_id, side, model: whose files they are.
        record: as it was delivered.
        work_files: how many files of it are kept in that job's work folder for the job's review.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    side: str
    model: str
    record: CellRecord
    work_files: int


class KeptCells:
    """The part of the store that the result cache reads and writes."""

    def __init__(self, redis: Any, ttl_s: int) -> None:
        self._redis = redis
        self.ttl_s = ttl_s

    def get(self, digests: Sequence[str]) -> list[KeptCell | None]:
        """What is kept under each of them, if anything."""
        with translated():
            values = self._redis.mget([key_of(digest) for digest in digests])
        return [None if value is None else KeptCell.model_validate_json(value) for value in values]

    def put(self, digest: str, kept: KeptCell) -> None:
        """Remember a cell until `result_cache_ttl_s` from now."""
        with translated():
            self._redis.set(key_of(digest), kept.model_dump_json(), ex=self.ttl_s)

    def drop(self, digest: str) -> None:
        """Forget a cell whose files are gone."""
        with translated():
            self._redis.delete(key_of(digest))


def key_of(digest: str) -> str:
    """Where a cell is kept."""
    return f"cell:{digest}"
