"""The order in which jobs wait, how many may, and until when; and which are open."""

from datetime import datetime
from typing import Any

from shared.errors import QueueFull
from shared.jobs import utc_now
from shared.store.connection import translated
from shared.store.memory import RedisMemory
from shared.store.pace import Pace

QUEUED = "jobs:queued"
DEADLINES = "jobs:deadlines"
OPEN_JOBS = "jobs:open"


class JobQueue:
    """The part of the store that knows which jobs wait. Only scripts.py changes what is here."""

    _redis: Any
    _ttl_s: int
    _max_queued: int
    pace: Pace
    memory: RedisMemory

    def queue_position(self, job_id: str) -> int | None:
        """A queued job's place, 1 being the next; None when it is not queued."""
        with translated():
            rank = self._redis.zrank(QUEUED, job_id)
        return None if rank is None else int(rank) + 1

    def queue_depth(self) -> int:
        """How many jobs no worker has begun."""
        oldest_us = int(utc_now().timestamp() - self._ttl_s) * 1_000_000
        with translated():
            return int(self._redis.zcount(QUEUED, oldest_us, "+inf"))

    def oldest_queued_s(self) -> float:
        """Age of the oldest job that no worker has begun (s); 0 when none waits."""
        now = utc_now().timestamp()
        oldest_us = int(now - self._ttl_s) * 1_000_000
        with translated():
            found = self._redis.zrangebyscore(QUEUED, oldest_us, "+inf", start=0, num=1, withscores=True)
        return max(0.0, now - found[0][1] / 1_000_000) if found else 0.0

    def raise_if_full(self) -> None:
        """A first look, before a request does work that would be in vain; what counts is the one of `create`.

        Raises:
            QueueFull: as `create`. StoreUnavailable: Redis has too little memory left for another job.
        """
        self.memory.raise_if_low()
        if self.queue_depth() >= self._max_queued:
            raise self.queue_full()

    def queue_full(self) -> QueueFull:
        """The error that says so, and when to come again."""
        return QueueFull(
            f"{self._max_queued} jobs wait already (MAX_QUEUED_JOBS)",
            retry_after_s=self.pace.retry_after_s(self._max_queued),
        )

    def overdue(self, now: datetime) -> list[str]:
        """Open jobs whose deadline has passed, at most 100 at once."""
        with translated():
            found = self._redis.zrangebyscore(DEADLINES, "-inf", f"{now.timestamp():.3f}", start=0, num=100)
        return [str(job_id) for job_id in found]

    def forget_deadline(self, job_id: str) -> None:
        """Drop the deadline of a job whose record is gone."""
        with translated():
            self._redis.zrem(DEADLINES, job_id)

    def stalled(self, for_s: float, limit: int, *, skip: int = 0) -> list[tuple[str, float]]:
        """Open jobs that have not changed for so long, as (job id, time of its last change), longest first.

        Most of them simply wait for their turn.

        Args:
            skip: so many of them are left out, those that have not changed for the longest time.
        """
        with translated():
            now = int(self._redis.time()[0])
            found = self._redis.zrangebyscore(OPEN_JOBS, "-inf", now - for_s, start=skip, num=limit, withscores=True)
        return [(str(job_id), float(since)) for job_id, since in found]

    def touch(self, job_id: str) -> None:
        """Have an open job count as changed now."""
        with translated():
            self._redis.zadd(OPEN_JOBS, {job_id: int(self._redis.time()[0])}, xx=True)

    def forget_open(self, job_id: str) -> None:
        """Drop a job whose record is gone from the open ones."""
        with translated():
            self._redis.zrem(OPEN_JOBS, job_id)
