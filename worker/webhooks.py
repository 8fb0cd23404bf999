"""Webhooks: signed POSTs about a job's events, tried again until they arrive or two hours are over.

Signed by the Standard Webhooks scheme (https://www.standardwebhooks.com): webhook-id is the same on every try of an
event, so a receiver can tell a repeated one. When a try is due is kept in Redis (shared/store/deliveries.py), and each
try is a Celery task without a countdown: a message that waits for an hour would sit unacknowledged in one worker's
memory and share its fate. Tries have a small budget of their own, so endpoints that hang never hold up the cells.
"""

import json
import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import structlog
from celery import Celery
from standardwebhooks import Webhook

from shared import messages
from shared.errors import JobNotFound, SourceAddressForbidden, SourceError, SourceTimeout, StoreUnavailable
from shared.jobs import FINAL_CELLS, Job, utc_now
from shared.logs import bind_context
from shared.settings import Settings
from shared.signing import OutputUrls
from shared.store import Deliveries, Delivery, Store
from shared.store.counters import RETRIES
from shared.store.deliveries import Attempt, now_ms, webhook_of
from shared.urls import shown_url
from worker.backoff import next_delay_s, parse_retry_after
from worker.budget import HostBudget
from worker.sources import USER_AGENT, guarded_session
from worker.ticker import Ticker

log = structlog.get_logger(__name__)

#: Statuses worth another try, beside all of 5xx.
_RETRIED = frozenset({408, 429})
#: How often the clock looks for deliveries that are due (s), and how many it hands out at once.
_TICK_S = 0.5
_HANDED_OUT = 16
#: How long after the end of its time a try may still be recorded (ms).
_RECORD_WITHIN_MS = 30_000
#: When a delivery that found no room in the budget is due again (s, from-to).
_BUSY_S = (1.0, 3.0)


@dataclass(frozen=True)
class Outcome:
    """What one POST brought.

    Attributes:
        status: of the answer; None when there was none.
        error: why it did not arrive; None when it did.
        is_worth_another: whether the fault may pass.
        retry_after_s: what the receiver asked for (s).
    """

    status: int | None
    error: str | None
    is_worth_another: bool = False
    retry_after_s: float | None = None


class WebhookSender:
    """Makes one try of one delivery; shared by all threads of a worker."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store, self._deliveries = settings, store, store.deliveries
        self._urls = OutputUrls(settings)
        self._budget = HostBudget(max(1, settings.worker_threads // 4))

    def send(self, job_id: str, event_id: str, token: int) -> None:
        """Try a delivery, unless its token says that somebody else has it."""
        try:
            job = self._store.get(job_id)
        except JobNotFound:
            log.warning("webhook_job_gone")
            self._deliveries.drop(job_id, event_id)
            return
        options, delivery = webhook_of(job), self._deliveries.of_job(job_id).get(event_id)
        if options is None or delivery is None or delivery.state != "pending":
            self._deliveries.drop(job_id, event_id)
            return
        host = urlsplit(options.url).netloc.lower()
        with self._budget.hold(host) as has_room:
            if not has_room:
                pause_s = random.uniform(*_BUSY_S)  # noqa: S311
                self._deliveries.move(job_id, event_id, token, now_ms() + int(pause_s * 1000))
                return
            # Longer than a try can take: when it passes without a record, this process has been killed.
            until = now_ms() + int(self._settings.webhook_timeout_s * 1000) + _RECORD_WITHIN_MS
            if not self._deliveries.move(job_id, event_id, token, until):
                return
            begun, started = utc_now(), time.perf_counter()
            outcome = self._post(options.url, host, self._body(job, delivery), delivery.id, begun)
        seconds = round(time.perf_counter() - started, 3)
        if delivery.attempts:
            self._store.counters.add(RETRIES, "webhook")
        delivery.attempts.append(
            Attempt(at=begun.isoformat(), status=outcome.status, seconds=seconds, error=outcome.error)
        )
        self._settle(job_id, event_id, until, delivery, outcome)
        log.log(
            logging.INFO if outcome.error is None else logging.WARNING,
            "webhook_tried",
            **{"type": delivery.type, "host": host, "state": delivery.state, "tries": len(delivery.attempts)},
            **{"status": outcome.status, "seconds": seconds, "error": outcome.error},
        )

    def _settle(self, job_id: str, event_id: str, token: int, delivery: Delivery, outcome: Outcome) -> None:
        """Record what the last try made of a delivery, and when the next one is due."""
        next_ms = None
        if outcome.error is None:
            delivery.state = "delivered"
        else:
            tries = len(delivery.attempts)
            delay_s = next_delay_s(tries, outcome.retry_after_s) if outcome.is_worth_another else None
            if delay_s is None:
                delivery.state = "given_up"
            else:
                next_ms = now_ms() + int(delay_s * 1000)
        self._deliveries.record(job_id, event_id, token, delivery, next_ms)

    def _post(self, url: str, host: str, body: str, webhook_id: str, now: datetime) -> Outcome:
        if not self._settings.webhook_secret.get_secret_value():
            return Outcome(None, "this worker has no WEBHOOK_SECRET to sign with", is_worth_another=True)
        try:
            status, retry_after_s = self._answer(url, body, webhook_id, now)
        except SourceTimeout:
            return Outcome(None, f"no answer within {self._settings.webhook_timeout_s:g} s", is_worth_another=True)
        except SourceError as exc:
            # The path may be somebody's secret: it stays out of the log.
            error = exc.message.replace(shown_url(url), host)
            return Outcome(None, error, is_worth_another=not isinstance(exc, SourceAddressForbidden))
        if 200 <= status < 300:
            return Outcome(status, None)
        error = "redirects are not followed" if 300 <= status < 400 else f"answered {status}"
        return Outcome(status, error, status in _RETRIED or status >= 500, retry_after_s)

    def _answer(self, url: str, body: str, webhook_id: str, now: datetime) -> tuple[int, float | None]:
        secret = self._settings.webhook_secret.get_secret_value()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(webhook_id, now, body),
        }
        timeout_s = self._settings.webhook_timeout_s
        with (
            guarded_session(url, self._settings, timeout_s) as (session, _),
            # stream: the answer's body is nobody's concern, and may be endless.
            session.post(
                url, data=body.encode(), headers=headers, stream=True, allow_redirects=False, timeout=timeout_s
            ) as answer,
        ):
            return answer.status_code, parse_retry_after(answer.headers.get("Retry-After"))

    def _body(self, job: Job, delivery: Delivery) -> str:
        happened = datetime.fromtimestamp(delivery.at_ms / 1000, UTC)
        data = self._urls.sign(job_data(job), job.job_id)
        if delivery.cell is not None:
            data["cell"] = delivery.cell
        return json.dumps({"type": delivery.type, "timestamp": happened.isoformat(), "data": data})


def job_data(job: Job) -> dict[str, Any]:
    """The job as GET /jobs/{job_id} shows it, less what only matters while it waits."""
    data = job.model_dump(
        mode="json",
        include={"job_id", "id", "status", "created_at", "started_at", "completed_at", "deadline", "retry_of"}
        | {"outputs_removed_at", "cells", "extraction", "result", "error"},
    )
    done = sum(cell.status in FINAL_CELLS for cell in job.cells.values())
    tokens = None if job.tokens is None else job.tokens.model_dump(mode="json")
    return {**data, "tokens": tokens, "progress": {"done": done, "total": len(job.cells)}}


class WebhookClock(Ticker):
    """Turns deliveries that are due into messages, until it is closed. Every worker has one; a claim has one owner."""

    def __init__(self, app: Celery, deliveries: Deliveries) -> None:
        super().__init__("webhooks", _TICK_S)
        self._app, self._deliveries = app, deliveries

    def tick(self) -> None:
        """Send a message for every delivery that is due."""
        try:
            for job_id, event_id, token in self._deliveries.claim_due(_HANDED_OUT):
                messages.send_webhook(self._app, job_id, event_id, token)
        except StoreUnavailable as exc:
            # Claims that were not sent are due again when their time is over.
            log.warning("webhooks_waiting", detail=exc.message)
        except Exception:
            log.exception("webhooks_waiting")  # the clock must not die of one bad entry


def register_webhook_task(app: Celery, sender: WebhookSender) -> None:
    """Add the task that makes one try."""

    @app.task(name=messages.WEBHOOK, ignore_result=True)
    def webhook(job_id: str, event_id: str, token: int) -> None:
        with bind_context(job_id=job_id):
            try:
                sender.send(job_id, event_id, token)
            except StoreUnavailable as exc:
                log.warning("webhook_waiting", detail=exc.message)  # due again when the claim's time is over
