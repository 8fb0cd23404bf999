"""The listings of jobs: newest first, page by page, by caller, client id and status."""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shared.errors import InvalidRequest
from shared.jobs import JOB_ID, Job, JobStatus
from shared.store.connection import translated
from shared.store.records import from_hash, job_key

#: Records looked at in one step, and for one page at most: a rare status must not make one request read everything.
_STEP = 100
_SCAN_LIMIT = 2000

_CURSOR = re.compile(rf"([0-9]{{1,17}}):({JOB_ID.pattern})")


@dataclass(frozen=True)
class Page:
    """Some jobs, newest first, and where the next ones begin; no cursor: these were the last."""

    jobs: list[Job]
    next_cursor: str | None


def listing_keys(caller: str, client_id: int | str) -> tuple[str, str]:
    """The two listings that a job is in."""
    return f"jobs:of:{caller}", f"jobs:id:{caller}:{client_id}"


class JobIndex:
    """The part of the store that finds jobs without knowing their ids."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    def page(
        self,
        caller: str,
        *,
        limit: int,
        cursor: str | None = None,
        statuses: Iterable[JobStatus] = (),
        client_id: str | None = None,
    ) -> Page:
        """A caller's jobs after `cursor`, newest first.

        Args:
            statuses: only jobs in one of these; all when empty. When few of the latest 2000 jobs are, the page is
                shorter than `limit` and yet has a cursor.
            client_id: only jobs of this id of the client's, as text: 5 and "5" are both found by "5".
        Raises:
            InvalidRequest: the cursor is not one of ours.
        """
        of_caller, of_id = listing_keys(caller, client_id or "")
        listing = of_caller if client_id is None else of_id
        wanted = frozenset(statuses)
        position = None if cursor is None else _read_cursor(cursor)
        found: list[str] = []
        seen = 0
        with translated():
            for entries in self._steps(listing, position):
                states = self._states(listing, [job_id for _, job_id in entries])
                for entry, state in zip(entries, states, strict=True):
                    position, seen = entry, seen + 1
                    if state is not None and (not wanted or state in wanted):
                        found.append(entry[1])
                    if len(found) == limit or seen == _SCAN_LIMIT:
                        more = next(self._steps(listing, position), None)
                        return Page(self._records(found), None if more is None else _write_cursor(position))
            return Page(self._records(found), None)

    def _steps(self, listing: str, after: tuple[int, str] | None) -> Iterator[list[tuple[int, str]]]:
        """(score, job id) of a listing after a position, newest first, in steps."""
        while True:
            # By score and then by name, as Redis sorts them; those of the same microsecond as `after` are met again.
            highest = "+inf" if after is None else after[0]
            reply = self._redis.zrevrangebyscore(listing, highest, "-inf", start=0, num=_STEP, withscores=True)
            entries = [(int(score), job_id) for job_id, score in reply]
            fresh = [entry for entry in entries if after is None or entry < after]
            if not fresh:
                return
            yield fresh
            after = fresh[-1]

    def _states(self, listing: str, job_ids: list[str]) -> list[str | None]:
        """Each job's status; None for one whose record has expired, which is taken off the listing."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(job_key(job_id), "status")
            states: list[str | None] = pipe.execute()
        gone = [job_id for job_id, state in zip(job_ids, states, strict=True) if state is None]
        if gone:
            self._redis.zrem(listing, *gone)
        return states

    def _records(self, job_ids: list[str]) -> list[Job]:
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(job_key(job_id))
            return [from_hash(fields) for fields in pipe.execute() if fields]


def _write_cursor(position: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(f"{position[0]}:{position[1]}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest("?cursor: is not a next_cursor of this listing") from exc
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidRequest("?cursor: is not a next_cursor of this listing")
    return int(match[1]), match[2]
