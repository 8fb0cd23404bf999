"""What the service has counted, for GET /metrics: kept in Redis, because a worker has no address of its own to ask.

    metrics    hash    `name` or `name:label` -> a number

Counts survive restarts of API and workers, kill -9 too, and are gone with Redis' data; Prometheus' rate() reads that as
any counter that begins again. Failures and ends of jobs are counted by the script that makes the change (scripts.py),
so each counts once however often its task runs.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from shared.errors import StoreUnavailable
from shared.store.connection import translated

METRICS = "metrics"

#: Tasks that were given to a worker, and those of them that had been given to one before, by task.
DELIVERIES, REDELIVERIES = "deliveries", "redeliveries"
#: Tries after the first one, by kind: webhook, extraction, job.
RETRIES = "retries"
#: Cells that failed, by code, and jobs that ended, by status.
CELL_FAILURES, JOBS_ENDED = "cell_failures", "jobs_ended"
#: Jobs whose outputs the sweep removed, and their bytes, by reason: age, size.
REMOVED_JOBS, REMOVED_BYTES = "removed_jobs", "removed_bytes"
#: What killed processes had left and the sweep removed, by kind: part, work.
ABANDONED = "abandoned"
#: Bytes and files of all outputs as the latest sweep found them.
OUTPUT_BYTES, OUTPUT_FILES = "output_bytes", "output_files"


def field(name: str, label: str) -> str:
    """The field of a counter with a label."""
    return f"{name}:{label}"


class Counters:
    """The part of the store that counts. A count must not cost what it counts: without Redis it is lost."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    def add(self, name: str, label: str, count: int = 1) -> None:
        """Count something."""
        if count:
            with contextlib.suppress(StoreUnavailable), translated():
                self._redis.hincrby(METRICS, field(name, label), count)

    def put(self, values: Mapping[str, int]) -> None:
        """Store measured values, which have no label and replace the last ones."""
        with contextlib.suppress(StoreUnavailable), translated():
            self._redis.hset(METRICS, mapping=dict(values))

    def read(self) -> dict[str, dict[str, float]]:
        """name -> label -> number; a measured value has the label ""."""
        with translated():
            stored = self._redis.hgetall(METRICS)
        found: dict[str, dict[str, float]] = {}
        for key, value in stored.items():
            name, _, label = key.partition(":")
            found.setdefault(name, {})[label] = float(value)
        return found
