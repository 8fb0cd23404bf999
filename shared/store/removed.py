"""Jobs whose outputs were removed: said in the job's record, and remembered for a while when that is gone.

outputs:removed:{job_id}    string    when (ISO time), for job_ttl_s
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from shared.store.connection import translated
from shared.store.records import job_key
from shared.store.scripts import MARK


class RemovedOutputs:
    """The part of the store that knows which outputs there are no more."""

    def __init__(self, redis: Any, ttl_s: int) -> None:
        self._redis = redis
        self._ttl_s = ttl_s

    def note(self, job_ids: Sequence[str], when: datetime) -> None:
        """Say of some jobs that their outputs are gone; before the files are removed, so that no record promises them.

        The lifetime of a record stays as it is.
        """
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.set(_key(job_id), when.isoformat(), ex=self._ttl_s)
                pipe.eval(MARK, 1, job_key(job_id), "outputs_removed_at", when.isoformat())
            pipe.execute()

    def has(self, job_id: str) -> bool:
        """Whether a job's outputs were removed not longer than `job_ttl_s` ago."""
        with translated():
            return bool(self._redis.exists(_key(job_id)))

    def which_of(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the jobs whose outputs were removed not longer than `job_ttl_s` ago."""
        with translated():
            notes = self._redis.mget([_key(job_id) for job_id in job_ids]) if job_ids else []
        return [job_id for job_id, note in zip(job_ids, notes, strict=True) if note]


def _key(job_id: str) -> str:
    return f"outputs:removed:{job_id}"
