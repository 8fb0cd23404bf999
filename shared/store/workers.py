"""What the workers report of themselves."""

import json
from typing import Any

from shared.jobs import utc_now
from shared.store.connection import translated
from shared.store.records import dump

#: A worker that has not reported for this long (s) is gone.
WORKER_TTL_S = 15

_WORKERS = "workers"
#: Names of workers that may hold messages, whether they live or not.
_HOLDERS = "workers:holders"


def _worker_key(name: str) -> str:
    return f"worker:{name}"


class WorkerReports:
    """The part of the store that knows which workers live."""

    _redis: Any

    def publish_worker(self, name: str, info: dict[str, Any]) -> None:
        """Store a worker's report; `name` and `seen_at` (UTC) are added. It is forgotten after 15 s without another.

        Args:
            info: {"status": "loading|ready|draining|failed", "device", "started_at", "extraction": true when designs
                can be extracted, "models": {model: {"status": "loading|ready|failed", "device", "dtype", "profile",
                "licence", "error"}}}.
        """
        report = dump({**info, "name": name, "seen_at": utc_now()})
        with translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(_worker_key(name), report, ex=WORKER_TTL_S)
            pipe.sadd(_WORKERS, name)
            pipe.sadd(_HOLDERS, name)
            pipe.execute()

    def workers(self) -> list[dict[str, Any]]:
        """The reports of all live workers, by name."""
        with translated():
            names = sorted(self._redis.smembers(_WORKERS))
            reports = self._redis.mget([_worker_key(name) for name in names]) if names else []
            gone = [name for name, report in zip(names, reports, strict=True) if report is None]
            if gone:
                self._redis.srem(_WORKERS, *gone)
        return [json.loads(report) for report in reports if report is not None]

    def forget_worker(self, name: str) -> None:
        """Remove a worker that has stopped."""
        with translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(_worker_key(name))
            pipe.srem(_WORKERS, name)
            pipe.execute()

    def holders(self) -> dict[str, bool]:
        """Workers that may hold messages: name -> whether it reports. One that is gone stays until `drop_holder`."""
        with translated():
            names = sorted(self._redis.smembers(_HOLDERS))
            reports = self._redis.mget([_worker_key(name) for name in names]) if names else []
        return {name: report is not None for name, report in zip(names, reports, strict=True)}

    def drop_holder(self, name: str) -> None:
        """Note that all messages of a worker that is gone were given back."""
        with translated():
            self._redis.srem(_HOLDERS, name)
