"""Deliveries of webhooks: what is to be told, what each try brought, and when the next one is due.

A delivery is written in the same step as the event it tells (scripts.py, CHANGE), so neither a kill nor a transition
made by the API can lose one. A delivery stays in `webhooks:due` until it is delivered or given up; its score
is the time of the next try and at the same time a token: who wants to try must hold the score that is there, so of two
messages for one try the second does nothing.

    due -- claim_due --> claimed (a message is under way) -- take --> being tried -- record --> due again | done
     ^                        |                                   |
     +------ its time runs out without the next step (a kill) ----+
"""

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.jobs import Job
from shared.options import WebhookOptions
from shared.store.connection import translated
from shared.store.records import job_key
from shared.urls import shown_url

DUE_KEY = "webhooks:due"

#: How long a claimed delivery may wait in the queue before another message is sent for it (ms).
CLAIM_MS = 60_000

# KEYS: due. ARGV: now, claimed until, at most. Returns the references.
_CLAIM = """
local refs = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, ref in ipairs(refs) do redis.call('ZADD', KEYS[1], ARGV[2], ref) end
return refs
"""

# KEYS: due. ARGV: reference, the score it must have, its new score.
_MOVE = """
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) ~= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
"""

# KEYS: due, webhooks, job. ARGV: reference, the score it must have, next try or "", event id, delivery, ttl.
# An attempt is a change of the job, so its keys live on.
_RECORD = """
if redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[2])
  return 0
end
redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('EXPIRE', KEYS[3], ARGV[6])
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and tonumber(score) == tonumber(ARGV[2]) then
  if ARGV[3] == '' then redis.call('ZREM', KEYS[1], ARGV[1]) else redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1]) end
end
return 1
"""


class Attempt(BaseModel):
    """One try of a delivery."""

    model_config = ConfigDict(extra="forbid")

    at: str = Field(description="When it began, UTC")
    status: int | None = Field(None, description="Status of the answer; null when there was none")
    seconds: float = Field(description="How long it took")
    error: str | None = Field(None, description="Why it did not arrive; null when it did")


class Delivery(BaseModel):
    """One event on its way to the client."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="The webhook-id header: the same on every try")
    type: str = Field(description="job.succeeded, cell.done, ...")
    cell: str | None = Field(None, description="The cell of a cell.done")
    at_ms: int = Field(description="When the event happened, milliseconds since 1970, UTC")
    state: Literal["pending", "delivered", "given_up"] = Field(description="given_up: no try follows")
    attempts: list[Attempt] = Field(description="Every try, oldest first")


class WebhookReport(BaseModel):
    """A job's webhook and what became of it."""

    url: str = Field(description="Where to, without the query, which may hold secrets")
    events: list[str] = Field(description="Which events are told")
    deliveries: list[Delivery] = Field(description="Oldest first")


def delivery_id(job_id: str, event_id: str) -> str:
    """The webhook-id of an event: from the job and the event's place in its stream, so every try has the same."""
    return f"evt_{job_id}_{event_id}"


class Deliveries:
    """All deliveries of all jobs. Safe to share between threads; every method may raise StoreUnavailable."""

    def __init__(self, client: Any, ttl_s: int) -> None:
        self._redis = client
        self._ttl_s = ttl_s
        self._claim, self._move, self._record = (client.register_script(text) for text in (_CLAIM, _MOVE, _RECORD))

    def claim_due(self, limit: int) -> list[tuple[str, str, int]]:
        """Up to `limit` deliveries whose time has come, as (job id, event id, token), longest overdue first.

        Each is claimed for CLAIM_MS; if nobody takes it by then, it is due again.
        """
        now = now_ms()
        with translated():
            refs = self._claim(keys=[DUE_KEY], args=[now, now + CLAIM_MS, limit])
        return [(*ref.split(" ", 1), now + CLAIM_MS) for ref in refs]

    def move(self, job_id: str, event_id: str, token: int, due_ms: int) -> bool:
        """Give a delivery another time, if its token is still the one given. The time is its new token."""
        with translated():
            return bool(self._move(keys=[DUE_KEY], args=[_ref(job_id, event_id), token, due_ms]))

    def record(self, job_id: str, event_id: str, token: int, delivery: Delivery, next_ms: int | None) -> None:
        """Store a delivery after a try, and when to try again (None: never). A job that is gone takes it along."""
        body = delivery.model_dump_json(exclude={"id"})
        with translated():
            self._record(
                keys=[DUE_KEY, deliveries_key(job_id), job_key(job_id)],
                args=[_ref(job_id, event_id), token, "" if next_ms is None else next_ms, event_id, body, self._ttl_s],
            )

    def drop(self, job_id: str, event_id: str) -> None:
        """Forget a delivery whose job is gone."""
        with translated():
            self._redis.zrem(DUE_KEY, _ref(job_id, event_id))

    def of_job(self, job_id: str) -> dict[str, Delivery]:
        """The job's deliveries by event id, oldest first."""
        with translated():
            stored = self._redis.hgetall(deliveries_key(job_id))
        pairs = sorted(stored.items(), key=lambda pair: _order(pair[0]))
        return {
            event_id: Delivery.model_validate_json(f'{{"id":"{delivery_id(job_id, event_id)}",{value[1:]}')
            for event_id, value in pairs
        }

    def report(self, job: Job) -> WebhookReport | None:
        """What the job's webhook is and what became of it; None when it has none."""
        options = webhook_of(job)
        if options is None:
            return None
        deliveries = list(self.of_job(job.job_id).values())
        return WebhookReport(url=shown_url(options.url), events=list(options.events), deliveries=deliveries)


def deliveries_key(job_id: str) -> str:
    return f"job:{job_id}:webhooks"


def webhook_of(job: Job) -> WebhookOptions | None:
    """The webhook the client asked for, if any."""
    asked: Any = job.options.get("webhook")
    return None if asked is None else WebhookOptions.model_validate(asked)


def now_ms() -> int:
    return int(time.time() * 1000)


def _ref(job_id: str, event_id: str) -> str:
    return f"{job_id} {event_id}"


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number)
