"""The events of a job: one stream, read by whoever waits for it."""

import json
import math
import time
from typing import Any

from shared.store.connection import translated

Event = tuple[str, dict[str, Any]]

#: Longest single blocking read (s). A wait is made of such reads, so that a Redis that hangs without closing the
#: connection is noticed after READ_SLICE_S + SOCKET_TIMEOUT_S and does not keep a web thread for ever.
READ_SLICE_S = 20.0


def events_key(job_id: str) -> str:
    return f"job:{job_id}:events"


def ended_key(job_id: str) -> str:
    """A stream whose only entry comes when the job ends: who waits for nothing else is woken by nothing else."""
    return f"job:{job_id}:ended"


class JobEvents:
    """The part of the store that reads streams."""

    _waiting: Any

    def wait_ended(self, job_id: str, timeout_s: float) -> bool:
        """Whether the job has ended, or does within `timeout_s` (more than 0; at most READ_SLICE_S of them)."""
        with translated():
            return bool(self._waiting.xread({ended_key(job_id): "0-0"}, block=_slice_ms(timeout_s)))

    def events(self, job_id: str, after_id: str = "0-0", block_ms: int = 0) -> list[Event]:
        """A job's events after `after_id`, oldest first, as (id, event).

        Args:
            after_id: id of the last event already seen; "0-0" replays all, so nothing before the call is missed.
            block_ms: how long to wait for the first one (ms); 0 does not wait.
        Returns:
            At least one event, or an empty list when the time is over.
        """
        key, deadline = events_key(job_id), time.monotonic() + block_ms / 1000
        while True:
            with translated():
                block = _slice_ms(deadline - time.monotonic()) if block_ms else None
                reply = self._waiting.xread({key: after_id}, block=block)
            if reply:
                return [(event_id, json.loads(fields["data"])) for event_id, fields in _entries(reply, key)]
            if time.monotonic() >= deadline:
                return []


def _slice_ms(wait_s: float) -> int:
    """How long one blocking read of a wait may take (ms); at least 1, because 0 would mean for ever."""
    return max(1, math.ceil(min(wait_s, READ_SLICE_S) * 1000))


def _entries(reply: Any, key: str) -> Any:
    """The entries of one stream in an XREAD reply: RESP2 gives [[key, entries]], RESP3 {key: [entries]}."""
    if isinstance(reply, dict):
        found = reply[key]
        return found[0] if found and isinstance(found[0], list) else found
    return reply[0][1]
