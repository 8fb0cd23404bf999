"""Every Redis key of the service and its lifetime; the only module that talks to Redis directly.

    job:{job_id}          hash    the record: status, times, sources, cell:{name}, mark:{name}, result, error
    job:{job_id}:events   stream  one entry {"data": JSON} per change; about the last 200
    jobs:queued           zset    jobs no worker has begun, by time of creation (microseconds)
    workers               set     names of workers that have reported
    worker:{name}         string  a worker's latest report (JSON)

Job keys live `job_ttl_s` after the job's last change; a worker's report lives 15 s and is renewed by its heartbeat.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from shared.errors import JobNotFound, StoreUnavailable
from shared.jobs import FINAL, OPEN, SIDES, TRANSITIONS, CellRecord, Job, JobStatus, cell_names, utc_now
from shared.settings import Settings

Event = tuple[str, dict[str, Any]]

#: A worker that has not reported for this long (s) is gone.
WORKER_TTL_S = 15
#: Events kept per job; a job makes about 15, so only a repeating fault reaches it.
EVENTS_KEPT = 200
#: Longest single blocking read (s). A wait is made of such reads, so that a Redis that hangs without closing the
#: connection is noticed after _READ_SLICE_S + _SOCKET_TIMEOUT_S and does not keep a web thread for ever.
_READ_SLICE_S = 20.0
_SOCKET_TIMEOUT_S = 5.0

_QUEUED = "jobs:queued"
_WORKERS = "workers"
_JSON_FIELDS = ("id", "sources", "models", "options", "result", "error")

# One script makes every change of a job, because check, change and event must be one step: two workers that finish the
# same job at the same time must not both see "not final yet".
# KEYS: job, events, queued. ARGV: ttl, events kept, job id, allowed states (",a,b,"), cell field or "", event,
# then field, value pairs. Returns 1 changed, 0 refused, -1 no such job.
_CHANGE = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return -1 end
if not string.find(ARGV[4], ',' .. status .. ',', 1, true) then return 0 end
if ARGV[5] ~= '' then
  local old = redis.call('HGET', KEYS[1], ARGV[5])
  if old then
    local was = cjson.decode(old)['status']
    if old == ARGV[8] or was == 'succeeded' or was == 'failed' then return 0 end
  end
end
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'data', ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
if redis.call('HGET', KEYS[1], 'status') ~= 'queued' then redis.call('ZREM', KEYS[3], ARGV[3]) end
return 1
"""

# KEYS: job. ARGV: field, value. Sets the field of an existing job unless it is set; returns what it now holds.
_CLAIM = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[1], ARGV[1])
"""

# KEYS: job. ARGV: field, value. Sets the field of an existing job only: HSET alone would revive an expired job as a
# hash that never expires.
_MARK = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""


def _job_key(job_id: str) -> str:
    return f"job:{job_id}"


def _events_key(job_id: str) -> str:
    return f"job:{job_id}:events"


def _worker_key(name: str) -> str:
    return f"worker:{name}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as exc:
        raise StoreUnavailable("Redis does not answer; check that it runs and that REDIS_URL is right") from exc


class Store:
    """Job records, their events, the queue's order and the workers' reports.

    Safe to share between threads. Every method raises StoreUnavailable when Redis does not answer.
    """

    def __init__(self, client: Redis, settings: Settings) -> None:
        """Use `client` (with decode_responses=True) for everything but blocking reads, which get their own client."""
        self._redis: Any = client
        # redis-py's default socket time-out of 5 s would end a longer blocking read with an error.
        self._waiting: Any = _connect(settings, _READ_SLICE_S + _SOCKET_TIMEOUT_S)
        self._ttl_s = settings.job_ttl_s
        self._change: Any = self._redis.register_script(_CHANGE)
        self._claim: Any = self._redis.register_script(_CLAIM)
        self._mark: Any = self._redis.register_script(_MARK)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(_connect(settings, _SOCKET_TIMEOUT_S), settings)

    def ping(self) -> None:
        """Return when Redis answers."""
        with _translated():
            self._redis.ping()

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()
        self._waiting.close()

    # --- jobs -------------------------------------------------------------------------------------------------
    def create(self, job: Job) -> None:
        """Write a new job's record, its first event and its place in the queue, in one transaction."""
        created_us = int(job.created_at.timestamp() * 1_000_000)
        key, events = _job_key(job.job_id), _events_key(job.job_id)
        with _translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=_to_hash(job))
            pipe.xadd(events, {"data": _dump({"type": "status", "status": job.status, "at": job.created_at})})
            pipe.expire(key, self._ttl_s)
            pipe.expire(events, self._ttl_s)
            pipe.zadd(_QUEUED, {job.job_id: created_us})
            # Jobs whose record expired before any worker came.
            pipe.zremrangebyscore(_QUEUED, "-inf", created_us - self._ttl_s * 1_000_000)
            pipe.execute()

    def get(self, job_id: str) -> Job:
        """The job's record.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
        """
        with _translated():
            fields = self._redis.hgetall(_job_key(job_id))
        if not fields:
            raise _job_not_found(job_id)
        return _from_hash(fields)

    def delete(self, job_id: str) -> None:
        """Forget a job whose message could not be sent."""
        with _translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(_job_key(job_id), _events_key(job_id))
            pipe.zrem(_QUEUED, job_id)
            pipe.execute()

    def transition(self, job_id: str, status: JobStatus, **fields: Any) -> bool:
        """Change a job's status, with `fields` of the record (`result`, `error`, ...) in the same step.

        Sets started_at on preparing and completed_at on a final status, and appends one event.

        Returns:
            False, and nothing changed, when the job is already final or may not go from its status to this one.
        Raises:
            JobNotFound: there is no such job.
        """
        allowed = frozenset(old for old, new in TRANSITIONS.items() if status in new)
        return self._set_status(job_id, status, allowed, fields)

    def finish(
        self,
        job_id: str,
        status: JobStatus,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> bool:
        """End a job, from whatever open state it is in; of many calls the first wins.

        The final event is {"type": "status", "status", "at", "final": true, "result", "error"}.

        Returns:
            True for the call that ended the job, False for every later one.
        Raises:
            JobNotFound: there is no such job.
        """
        if status not in FINAL:
            raise ValueError(f"{status} is not a final status")
        return self._set_status(job_id, status, OPEN, {"result": result, "error": error})

    def record_cell(self, job_id: str, name: str, cell: CellRecord) -> bool:
        """Record how a cell stands and append the event {"type": "cell", "cell": name, ...the record}.

        Returns:
            False, and nothing changed, when the job is final, the cell is already finished (its first outcome stays),
            or the record is the same as before.
        Raises:
            JobNotFound: there is no such job.
        """
        value = cell.model_dump(mode="json")
        event = {"type": "cell", "cell": name, **value}
        return self._run_change(job_id, OPEN, event, {f"cell:{name}": _dump(value)}, cell_field=f"cell:{name}")

    def _set_status(
        self, job_id: str, status: JobStatus, allowed: frozenset[JobStatus], fields: dict[str, Any]
    ) -> bool:
        now = utc_now()
        event: dict[str, Any] = {"type": "status", "status": status, "at": now}
        values = {"status": str(status), **{name: _encode(name, value) for name, value in fields.items()}}
        if status == JobStatus.PREPARING:
            values["started_at"] = now.isoformat()
        if status in FINAL:
            values["completed_at"] = now.isoformat()
            event |= {"final": True, "result": fields.get("result"), "error": fields.get("error")}
        return self._run_change(job_id, allowed, event, values)

    def _run_change(
        self,
        job_id: str,
        allowed: frozenset[JobStatus],
        event: dict[str, Any],
        values: dict[str, str],
        cell_field: str = "",
    ) -> bool:
        pairs = [part for pair in values.items() for part in pair]
        with _translated():
            outcome = self._change(
                keys=[_job_key(job_id), _events_key(job_id), _QUEUED],
                args=[self._ttl_s, EVENTS_KEPT, job_id, f",{','.join(allowed)},", cell_field, _dump(event), *pairs],
            )
        if outcome == -1:
            raise _job_not_found(job_id)
        return bool(outcome == 1)

    # --- guards -----------------------------------------------------------------------------------------------
    def claim(self, job_id: str, what: str, owner: str) -> str:
        """Take `what` (a step that must be done by one task only) for `owner`, unless somebody has it.

        Give the task's id as owner: `store.claim(job_id, "chord", task_id) == task_id` is then true for the first
        task and again for its redelivery, and false for any other task.

        Returns:
            Who has it now.
        Raises:
            JobNotFound: there is no such job.
        """
        with _translated():
            holder = self._claim(keys=[_job_key(job_id)], args=[f"mark:{what}", owner])
        if holder is None:
            raise _job_not_found(job_id)
        return str(holder)

    def get_mark(self, job_id: str, name: str) -> str | None:
        """The value of a mark, or None."""
        with _translated():
            value = self._redis.hget(_job_key(job_id), f"mark:{name}")
        return None if value is None else str(value)

    def set_mark(self, job_id: str, name: str, value: str) -> None:
        """Set a mark: a small note that tasks of one job leave for each other.

        Raises:
            JobNotFound: there is no such job.
        """
        with _translated():
            is_set = self._mark(keys=[_job_key(job_id)], args=[f"mark:{name}", value])
        if not is_set:
            raise _job_not_found(job_id)

    # --- waiting ----------------------------------------------------------------------------------------------
    def events(self, job_id: str, after_id: str = "0-0", block_ms: int = 0) -> list[Event]:
        """A job's events after `after_id`, oldest first, as (id, event).

        Args:
            after_id: id of the last event already seen; "0-0" replays all, so nothing before the call is missed.
            block_ms: how long to wait for the first one (ms); 0 does not wait.
        Returns:
            At least one event, or an empty list when the time is over.
        """
        key, deadline = _events_key(job_id), time.monotonic() + block_ms / 1000
        while True:
            wait_s = min(deadline - time.monotonic(), _READ_SLICE_S)
            with _translated():
                # BLOCK 0 would mean for ever, hence at least 1 ms.
                block = max(1, math.ceil(wait_s * 1000)) if block_ms else None
                reply = self._waiting.xread({key: after_id}, block=block)
            if reply:
                return [(event_id, json.loads(fields["data"])) for event_id, fields in _entries(reply, key)]
            if time.monotonic() >= deadline:
                return []

    def wait_final(self, job_id: str, timeout_s: float) -> Job:
        """The job's record when it has ended, or as it stands after `timeout_s`.

        Each waiter blocks on the job's stream with a connection of its own, so any number can wait for one job.

        Raises:
            JobNotFound: there is no such job, or its record expires meanwhile.
        """
        deadline, last_id = time.monotonic() + timeout_s, "0-0"
        job = self.get(job_id)
        while not job.is_final:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                break
            events = self.events(job_id, last_id, math.ceil(remaining_s * 1000))
            if events:
                last_id = events[-1][0]
            if not events or any(event.get("final") for _, event in events):
                job = self.get(job_id)
        return job

    # --- the queue --------------------------------------------------------------------------------------------
    def queue_position(self, job_id: str) -> int | None:
        """A queued job's place, 1 being the next; None when it is not queued."""
        with _translated():
            rank = self._redis.zrank(_QUEUED, job_id)
        return None if rank is None else int(rank) + 1

    def queue_depth(self) -> int:
        """How many jobs no worker has begun."""
        oldest_us = int(datetime.now(UTC).timestamp() - self._ttl_s) * 1_000_000
        with _translated():
            return int(self._redis.zcount(_QUEUED, oldest_us, "+inf"))

    # --- workers ----------------------------------------------------------------------------------------------
    def publish_worker(self, name: str, info: dict[str, Any]) -> None:
        """Store a worker's report; `name` and `seen_at` (UTC) are added. It is forgotten after 15 s without another.

        Args:
            info: {"status": "loading|ready|draining|failed", "device", "started_at", "models": {model: {"status":
                "loading|ready|failed", "device", "dtype", "profile", "licence", "error"}}}.
        """
        report = _dump({**info, "name": name, "seen_at": utc_now()})
        with _translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(_worker_key(name), report, ex=WORKER_TTL_S)
            pipe.sadd(_WORKERS, name)
            pipe.execute()

    def workers(self) -> list[dict[str, Any]]:
        """The reports of all live workers, by name."""
        with _translated():
            names = sorted(self._redis.smembers(_WORKERS))
            reports = self._redis.mget([_worker_key(name) for name in names]) if names else []
            gone = [name for name, report in zip(names, reports, strict=True) if report is None]
            if gone:
                self._redis.srem(_WORKERS, *gone)
        return [json.loads(report) for report in reports if report is not None]

    def forget_worker(self, name: str) -> None:
        """Remove a worker that has stopped."""
        with _translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(_worker_key(name))
            pipe.srem(_WORKERS, name)
            pipe.execute()


def _connect(settings: Settings, socket_timeout_s: float) -> Any:
    return Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        socket_timeout=socket_timeout_s,
        socket_connect_timeout=_SOCKET_TIMEOUT_S,
        socket_keepalive=True,
        # Each waiter holds a connection; the cap on waiters is the API's, not the pool's.
        max_connections=10_000,
        # A quick second try covers connections that a Redis restart left dead; more would only make clients wait.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
    )


def _entries(reply: Any, key: str) -> Any:
    """The entries of one stream in an XREAD reply: RESP2 gives [[key, entries]], RESP3 {key: [entries]}."""
    if isinstance(reply, dict):
        found = reply[key]
        return found[0] if found and isinstance(found[0], list) else found
    return reply[0][1]


def _job_not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id}, or its record has expired")


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=lambda item: item.isoformat())


def _encode(name: str, value: Any) -> str:
    if name not in Job.model_fields:
        raise ValueError(f"a job record has no field {name}")
    return _dump(value) if name in _JSON_FIELDS else str(value)


def _to_hash(job: Job) -> dict[str, str]:
    record = job.model_dump(mode="json", exclude={"cells"})
    fields = {name: _encode(name, value) for name, value in record.items() if value is not None}
    return fields | {f"cell:{name}": _dump(cell.model_dump(mode="json")) for name, cell in job.cells.items()}


def _from_hash(fields: dict[str, str]) -> Job:
    record: dict[str, Any] = {name: value for name, value in fields.items() if ":" not in name}
    record |= {name: json.loads(record[name]) for name in _JSON_FIELDS if name in record}
    stored = {name[5:]: json.loads(value) for name, value in fields.items() if name.startswith("cell:")}
    ordered = [name for name in cell_names(SIDES, tuple(record["models"])) if name in stored]
    return Job.model_validate({**record, "cells": {name: stored[name] for name in ordered}})
