"""How fast jobs are done, measured on every job that ends, so that a waiting one can be told when.

Two things are kept, both as moving averages in which the latest ten jobs or so count most:

    service:{n}    seconds from the start to the end of a job with n computed cells
    busy, jobs     seconds in which the service was busy, and the jobs it ended in them: their ratio is the throughput
                   of all workers together, however many jobs they work on at once

A job adds to `busy` the time since it started or since the job before it ended, whichever is later: of jobs that
overlap no second counts twice.
"""

from typing import Any

from shared.store.connection import translated

_PACE = "jobs:pace"
#: How much of the past stays at every new job: 0.9 makes the average follow a change within about ten jobs.
_KEPT = 0.9
#: What a client that found the queue full may at most be told to wait (s), and what it is told before any job was done.
_LONGEST_RETRY_S = 600
_UNKNOWN_RETRY_S = 5

# KEYS: pace. ARGV: ttl, share kept, started, ended, cells. One script, because workers report at the same time.
_RECORD = """
local function number(field) return tonumber(redis.call('HGET', KEYS[1], field) or '0') end
local keep, started, ended = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local last = number('last')
local busy = math.max(0, ended - math.max(started, last))
local field = 'service:' .. ARGV[5]
local service, known = math.max(0, ended - started), redis.call('HGET', KEYS[1], field)
if known then service = keep * tonumber(known) + (1 - keep) * service end
redis.call('HSET', KEYS[1], field, string.format('%.6f', service),
  'busy', string.format('%.6f', keep * number('busy') + busy),
  'jobs', string.format('%.6f', keep * number('jobs') + 1),
  'last', string.format('%.6f', math.max(last, ended)))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""


class Pace:
    """The part of the store that measures throughput."""

    def __init__(self, redis: Any, ttl_s: int) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._record = redis.register_script(_RECORD)

    def record(self, started_s: float, ended_s: float, cells: int) -> None:
        """Count a job that ended: its start and end (Unix time, s) and the cells that were computed for it.

        Cells that ran no model (taken over, or with an alpha of their own) must not be counted; a job without any other
        is no measure.
        """
        if cells > 0:
            with translated():
                self._record(keys=[_PACE], args=[self._ttl_s, _KEPT, f"{started_s:.6f}", f"{ended_s:.6f}", cells])

    def eta_s(self, position: int, cells: int) -> float | None:
        """Seconds until a queued job at `position` (1: the next) with so many cells is done; None until measured."""
        with translated():
            kept = self._redis.hgetall(_PACE)
        service = _service_s(kept, cells)
        per_job = _per_job_s(kept)
        if service is None or per_job is None:
            return None
        return round((position - 1) * per_job + service, 1)

    def retry_after_s(self, queued: int) -> int:
        """Whole seconds after which a queue of `queued` jobs that is full now has room again: a tenth of it, and at
        least one job, is done by then. Clients that all come back at the next free place would be refused again.
        """
        with translated():
            per_job = _per_job_s(self._redis.hgetall(_PACE))
        if per_job is None:
            return _UNKNOWN_RETRY_S
        return max(1, min(_LONGEST_RETRY_S, round(per_job * max(1.0, queued / 10))))


def _per_job_s(kept: dict[str, str]) -> float | None:
    return float(kept["busy"]) / float(kept["jobs"]) if "jobs" in kept else None


def _service_s(kept: dict[str, str], cells: int) -> float | None:
    """The time of a job with so many cells; one that was never seen is scaled from the nearest number that was."""
    known = {int(name.removeprefix("service:")): float(value) for name, value in kept.items() if ":" in name}
    if not known:
        return None
    nearest = min(known, key=lambda number: (abs(number - cells), number))
    return known[nearest] * cells / nearest
