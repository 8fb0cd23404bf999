"""The store: job records, their events, the queue's order. Every change of a job is one script."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from redis import Redis

from shared.errors import InternalError, JobCanceled, JobExpired, JobNotFound
from shared.jobs import FINAL, FINAL_CELLS, OPEN, TRANSITIONS, CellRecord, CellStatus, Job, JobStatus, utc_now
from shared.settings import Settings
from shared.store.cells import KeptCell, KeptCells, key_of
from shared.store.claims import Claim, Claims
from shared.store.connection import SOCKET_TIMEOUT_S, connect, translated
from shared.store.counters import CELL_FAILURES, JOBS_ENDED, METRICS, Counters, field
from shared.store.deliveries import DUE_KEY, Deliveries, deliveries_key
from shared.store.events import READ_SLICE_S, JobEvents, ended_key, events_key
from shared.store.index import JobIndex, listing_keys
from shared.store.memory import RedisMemory
from shared.store.pace import Pace
from shared.store.queue import DEADLINES, OPEN_JOBS, QUEUED, JobQueue
from shared.store.records import dump, encode, from_hash, job_key, marks_of, to_hash
from shared.store.removed import RemovedOutputs
from shared.store.scripts import BEGIN, CHANGE, CREATE, MARK
from shared.store.turns import CallTurns
from shared.store.underway import UnderWay
from shared.store.waiting import WaitingMessages
from shared.store.workers import WorkerReports

#: Events kept per job; a job makes about 15, so only a repeating fault reaches it.
EVENTS_KEPT = 200
#: How soon a waiter notices that waiting is over (s).
_LOOK_S = 1.0


class Store(JobEvents, JobQueue, WaitingMessages, WorkerReports):
    """Job records, their events, the queue's order and the workers' reports.

    Safe to share between threads. Every method raises StoreUnavailable when Redis does not answer.

    Attributes:
        index: the listings of jobs.
        claims: idempotency keys.
        kept_cells: the result cache.
        pace: how fast jobs are done.
        deliveries: webhooks on their way.
        call_turns: calls to Gemini.
        under_way: which jobs the workers are working on.
        counters: what /metrics shows.
        memory: how full Redis is.
        removed_outputs: jobs whose files are gone.
    """

    def __init__(self, client: Redis, settings: Settings) -> None:
        """Use `client` (with decode_responses=True) for everything but blocking reads, which get their own client."""
        self._redis: Any = client
        # redis-py's default socket time-out of 5 s would end a longer blocking read with an error.
        self._waiting: Any = connect(settings, READ_SLICE_S + SOCKET_TIMEOUT_S)
        self._ttl_s = settings.job_ttl_s
        self._max_queued = settings.max_queued_jobs
        self.index = JobIndex(self._redis)
        self.call_turns = CallTurns(self._redis)
        self.claims = Claims(self._redis)
        self.under_way = UnderWay(self._redis)
        self.counters = Counters(self._redis)
        self.memory = RedisMemory(self._redis)
        self.removed_outputs = RemovedOutputs(self._redis, self._ttl_s)
        self.kept_cells = KeptCells(self._redis, settings.result_cache_ttl_s)
        self.pace = Pace(self._redis, self._ttl_s)
        self.deliveries = Deliveries(self._redis, self._ttl_s)
        self._create: Any = self._redis.register_script(CREATE)
        self._change: Any = self._redis.register_script(CHANGE)
        self._begin: Any = self._redis.register_script(BEGIN)
        self._mark: Any = self._redis.register_script(MARK)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(connect(settings), settings)

    def ping(self) -> None:
        """Return when Redis answers."""
        with translated():
            self._redis.ping()

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()
        self._waiting.close()

    # --- jobs -------------------------------------------------------------------------------------------------
    def create(self, job: Job, claim: Claim | None = None) -> bool:
        """Write a new job's record, its first events and its place in the queue, in one step.

        The events are its status and every cell that it has finished from the start. The job is found by its claim's
        key from now on.

        Returns:
            False, and nothing is written, when the claim has run out and another request has the key now.
        Raises:
            QueueFull: `max_queued_jobs` wait already; it says when to come again.
        """
        events = [dump({"type": "status", "status": job.status, "at": job.created_at})]
        events += [
            _cell_event(name, dump(cell.model_dump(mode="json")))
            for name, cell in job.cells.items()
            if cell.status in FINAL_CELLS
        ]
        pairs = [part for pair in to_hash(job).items() for part in pair]
        with translated():
            outcome = self._create(
                keys=[
                    job_key(job.job_id),
                    events_key(job.job_id),
                    QUEUED,
                    DEADLINES,
                    *listing_keys(job.caller, job.id),
                    claim.key if claim else "",
                    OPEN_JOBS,
                ],
                args=[
                    self._ttl_s,
                    job.job_id,
                    int(job.created_at.timestamp() * 1_000_000),
                    "" if job.deadline is None else f"{job.deadline.timestamp():.3f}",
                    self._max_queued,
                    len(events),
                    *events,
                    *pairs,
                ],
            )
        if outcome == 0:
            raise self.queue_full()
        return bool(outcome == 1)

    def get(self, job_id: str) -> Job:
        """The job's record.

        Raises:
            JobNotFound: there is no such job, or its record has expired.
        """
        return self.get_with_marks(job_id)[0]

    def get_with_marks(self, job_id: str) -> tuple[Job, dict[str, str]]:
        """The job's record, and all of its marks by name.

        Raises:
            JobNotFound: as `get`.
        """
        with translated():
            fields = self._redis.hgetall(job_key(job_id))
        if not fields:
            raise _job_not_found(job_id)
        return from_hash(fields), marks_of(fields)

    def status(self, job_id: str) -> JobStatus:
        """The job's status, without the rest of its record.

        Raises:
            JobNotFound: as `get`.
        """
        with translated():
            status = self._redis.hget(job_key(job_id), "status")
        if status is None:
            raise _job_not_found(job_id)
        return JobStatus(status)

    def endings(self, job_ids: Sequence[str]) -> list[tuple[JobStatus, datetime | None] | None]:
        """Status and end of many jobs in one go; None for one without a record."""
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), "status", "completed_at")
            replies = pipe.execute()
        return [
            (JobStatus(status), datetime.fromisoformat(completed) if completed else None) if status else None
            for status, completed in replies
        ]

    def delete(self, job: Job, *, keep_events_s: int = 0) -> None:
        """Forget a job: its record, claim and places in the queue and the listings, and its events.

        Args:
            keep_events_s: how long the events stay for those who wait for it, to whom a gone stream says nothing.
        """
        key, told = job_key(job.job_id), (events_key(job.job_id), ended_key(job.job_id))
        with translated():
            claim = self._redis.hget(key, "mark:claim")
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(key, deliveries_key(job.job_id), *([claim] if claim else []))
                for stream in told:
                    pipe.expire(stream, keep_events_s)
                for listing in (QUEUED, DEADLINES, OPEN_JOBS, *listing_keys(job.caller, job.id)):
                    pipe.zrem(listing, job.job_id)
                pipe.execute()

    def check_caller(self, job_id: str, caller: str) -> None:
        """Return when the job was made under the API key of this name.

        Raises:
            JobNotFound: there is no such job, or it is somebody else's: the two must look the same.
        """
        with translated():
            status, owner = self._redis.hmget(job_key(job_id), "status", "caller")
        if status is None or (owner or "") != caller:
            raise _job_not_found(job_id)

    def transition(self, job_id: str, status: JobStatus, marks: Mapping[str, str] | None = None, **fields: Any) -> bool:
        """Change a job's status, with marks and `fields` of the record (`result`, `error`, ...) in the same step.

        Sets started_at on preparing and completed_at on a final status, and appends one event.

        Returns:
            False, and nothing changed, when the job is already final or may not go from its status to this one.
        Raises:
            JobNotFound: there is no such job.
        """
        allowed = frozenset(old for old, new in TRANSITIONS.items() if status in new)
        return self._set_status(job_id, status, allowed, fields, marks)

    def finish(
        self,
        job_id: str,
        status: JobStatus,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> bool:
        """End a job, from whatever open state it is in; of many calls the first wins.

        The final event is {"type": "status", "status", "at", "final": true, "result", "error"}. Cells that are still
        open fail with the job's error.

        Returns:
            True for the call that ended the job, False for every later one.
        Raises:
            JobNotFound: there is no such job.
        """
        if status not in FINAL:
            raise ValueError(f"{status} is not a final status")
        return self._set_status(job_id, status, OPEN, {"result": result, "error": error})

    def cancel(self, job_id: str) -> bool:
        """End a job because its client wants no more of it; False when it has ended before.

        Raises:
            JobNotFound: there is no such job.
        """
        return self.finish(job_id, JobStatus.CANCELED, error=JobCanceled("the job was canceled").to_record())

    def expire(self, job_id: str) -> bool:
        """End a job whose deadline has passed; False when it has ended before.

        Raises:
            JobNotFound: there is no such job.
        """
        error = JobExpired("the job was not done before its deadline (Cancel-After)")
        return self.finish(job_id, JobStatus.EXPIRED, error=error.to_record())

    def expire_if_overdue(self, job: Job) -> Job:
        """The job as it stands; one that is open past its deadline ends now.

        Raises:
            JobNotFound: its record is gone by now.
        """
        if not job.is_overdue:
            return job
        self.expire(job.job_id)
        return self.get(job.job_id)

    def begin_cell(self, job_id: str, name: str) -> Job:
        """Record that a cell is being processed, as `record_cell` would, in one step with reading the job.

        Returns:
            The job as it was before. When it is final or the cell is finished, nothing has changed.
        Raises:
            JobNotFound: there is no such job.
        """
        cell = CellRecord(status=CellStatus.PROCESSING)
        keys, args = self._change_of(job_id, OPEN, *_cell_change(name, cell))
        with translated():
            fields = self._begin(keys=keys, args=args)
        if not fields:
            raise _job_not_found(job_id)
        return from_hash(dict(zip(fields[::2], fields[1::2], strict=True)))

    def record_cell(
        self, job_id: str, name: str, cell: CellRecord, *, kept: tuple[str, KeptCell] | None = None
    ) -> bool:
        """Record how a cell stands and append the event {"type": "cell", "cell": name, ...the record}.

        Args:
            kept: its digest and what the result cache shall keep of it, if the record is taken.
        Returns:
            False, and nothing changed, when the job is final, the cell is already finished (its first outcome stays),
            or the record is the same as before.
        Raises:
            JobNotFound: there is no such job.
        """
        count = field(CELL_FAILURES, _code(cell.error)) if cell.status == CellStatus.FAILED else ""
        change = self._change_of(job_id, OPEN, *_cell_change(name, cell), count=count, kept=kept)
        return self._run_change(job_id, change)

    def _set_status(
        self,
        job_id: str,
        status: JobStatus,
        allowed: frozenset[JobStatus],
        fields: dict[str, Any],
        marks: Mapping[str, str] | None = None,
    ) -> bool:
        now = utc_now()
        about: dict[str, Any] = {"type": "status", "status": status, "at": now}
        event = dump(about)
        values = {"status": str(status), **{name: encode(name, value) for name, value in fields.items()}}
        values |= {f"mark:{name}": value for name, value in (marks or {}).items()}
        of_an_end: dict[str, Any] = {}
        if status == JobStatus.PREPARING:
            values["started_at"] = now.isoformat()
        if status in FINAL:
            values["completed_at"] = now.isoformat()
            told = {name: values.get(name, "null") for name in ("result", "error")}
            event = _with(about | {"final": True}, **told)
            never_done = CellRecord(status=CellStatus.FAILED, error=fields.get("error"))
            of_an_end = {
                "open_cells": dump(never_done.model_dump(mode="json")),
                "count": field(JOBS_ENDED, status),
                "count_open": field(CELL_FAILURES, _code(never_done.error)),
            }
        return self._run_change(job_id, self._change_of(job_id, allowed, event, values, **of_an_end))

    def _run_change(self, job_id: str, change: tuple[list[Any], list[Any]]) -> bool:
        """Run CHANGE with keys and arguments from `_change_of`; whether anything has changed."""
        keys, args = change
        with translated():
            outcome = self._change(keys=keys, args=args)
        if outcome == -1:
            raise _job_not_found(job_id)
        return bool(outcome == 1)

    def _change_of(
        self,
        job_id: str,
        allowed: frozenset[JobStatus],
        event: str,
        values: dict[str, str],
        cell_field: str = "",
        open_cells: str = "",
        count: str = "",
        count_open: str = "",
        kept: tuple[str, KeptCell] | None = None,
    ) -> tuple[list[Any], list[Any]]:
        """Keys and arguments of CHANGE."""
        keys = [*(job_key(job_id), events_key(job_id), QUEUED, DEADLINES), deliveries_key(job_id), DUE_KEY]
        keys += [OPEN_JOBS, METRICS, ended_key(job_id)]
        cache = ("", 0)
        if kept is not None:
            keys.append(key_of(kept[0]))
            cache = (kept[1].model_dump_json(), self.kept_cells.ttl_s)
        states = f",{','.join(allowed)},"
        pairs = [part for pair in values.items() for part in pair]
        fixed = [self._ttl_s, EVENTS_KEPT, job_id, states, cell_field, event, open_cells, count, count_open]
        return keys, [*fixed, *cache, *pairs]

    # --- marks ------------------------------------------------------------------------------------------------
    def get_mark(self, job_id: str, name: str) -> str | None:
        """The value of a mark, or None."""
        with translated():
            value = self._redis.hget(job_key(job_id), f"mark:{name}")
        return None if value is None else str(value)

    def set_mark(self, job_id: str, name: str, value: str) -> None:
        """Set a mark: a small note that tasks of one job leave for each other.

        Raises:
            JobNotFound: there is no such job.
        """
        with translated():
            is_set = self._mark(keys=[job_key(job_id)], args=[f"mark:{name}", value])
        if not is_set:
            raise _job_not_found(job_id)

    # --- waiting ----------------------------------------------------------------------------------------------
    def wait_final(self, job_id: str, timeout_s: float, is_over: Callable[[], bool] | None = None) -> Job:
        """The job's record when it has ended, or as it stands after `timeout_s`.

        Each waiter blocks with a connection of its own on what says that the job has ended, so any number can wait for
        one job, and none is woken by all that happens before.

        Args:
            is_over: asked every second, where it is given; once it is true nobody wants to wait any longer.
        Raises:
            JobNotFound: there is no such job, or its record expires meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        with translated():
            status = self._redis.hget(job_key(job_id), "status")
        if status is None or status in FINAL:  # what tells of its end may be gone
            return self.get(job_id)
        while True:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or (is_over is not None and is_over()):
                return self.get(job_id)
            has_ended = self.wait_ended(job_id, remaining_s if is_over is None else min(remaining_s, _LOOK_S))
            # Not told of its end, it may be gone, or have been ended by a version of us that told nobody.
            job = self.get(job_id)
            if has_ended or job.is_final:
                return job


def _code(error: dict[str, Any] | None) -> str:
    return str((error or {}).get("code", InternalError.code))


def _with(members: dict[str, Any], **texts: str) -> str:
    """A JSON object of members and of others that are JSON already: a result is long, and is not written out twice."""
    return dump(members)[:-1] + "".join(f',"{name}":{text}' for name, text in texts.items()) + "}"


def _cell_event(name: str, record: str) -> str:
    """`record`: a JSON object with at least one member."""
    return f"{dump({'type': 'cell', 'cell': name})[:-1]},{record[1:]}"


def _cell_change(name: str, cell: CellRecord) -> tuple[str, dict[str, str], str]:
    """The event, the field with its value, and the field again, as CHANGE wants them of a cell."""
    record, cell_field = dump(cell.model_dump(mode="json")), f"cell:{name}"
    return _cell_event(name, record), {cell_field: record}, cell_field


def _job_not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id}, or its record has expired")
