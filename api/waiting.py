"""Waiting for a job: how long the client wants to, and the reply when the time is over."""

import re
from dataclasses import dataclass

import structlog
from flask import Response, request

from api.prefer import parse_prefer
from api.replies import envelope_reply, job_path, result_reply
from api.service import Service
from shared.errors import InvalidRequest, JobCanceled, JobNotFound, StoreUnavailable
from shared.jobs import Job, utc_now
from shared.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Wait:
    """How long this request waits (s), and the preferences that made it so."""

    seconds: float
    wait_applied: str = ""
    async_applied: str = ""


def read_wait(settings: Settings, parameters: tuple[str, ...] = ("wait",)) -> Wait:
    """How long the current request wants to wait.

    The query says more exactly what is meant than a preference, so it wins; the limit holds for both.

    Args:
        parameters: names of the query parameters that the route knows.
    Raises:
        InvalidRequest: a parameter is unknown, or `wait` is neither a boolean nor a number of seconds.
    """
    unknown = [name for name in request.args if name not in parameters]
    if unknown:
        raise InvalidRequest(f"?{unknown[0][:100]}: unknown query parameter")
    default_s = min(settings.sync_wait_s, settings.sync_wait_limit_s)
    asked = request.args.get("wait")
    if asked is not None:
        if not re.fullmatch(r"true|false|[0-9]{1,9}", asked):
            raise InvalidRequest("?wait: must be true, false or a number of seconds")
        if asked == "true":
            return Wait(default_s)
        return Wait(0 if asked == "false" else min(int(asked), settings.sync_wait_limit_s))
    preferred = parse_prefer(request.headers.getlist("Prefer"))
    async_applied = "respond-async" if preferred.respond_async else ""
    if preferred.wait_s is not None:
        # With respond-async as well: wait that long, then answer 202 (RFC 7240, section 4.3).
        seconds = min(preferred.wait_s, settings.sync_wait_limit_s)
        return Wait(seconds, f"wait={seconds:g}", async_applied)
    return Wait(0 if preferred.respond_async else default_s, "", async_applied)


def waited_reply(service: Service, job: Job, wait: Wait, *, is_replayed: bool) -> Response:
    """Wait for the job, then its result or error; 202 and its envelope when it is still open.

    Args:
        is_replayed: an earlier request with the same Idempotency-Key made the job; the reply says so.
    """
    with structlog.contextvars.bound_contextvars(job_id=job.job_id):
        job, has_waited = _wait(service, job, wait.seconds)
    applied = [wait.wait_applied] if has_waited else []
    if job.is_final:
        reply = result_reply(service, job)
    else:
        reply = envelope_reply(service, job, 202)
        reply.headers["Location"] = job_path(job.job_id)
        reply.headers["Retry-After"] = "1"
        applied.insert(0, wait.async_applied)
    if any(applied):
        reply.headers["Preference-Applied"] = ", ".join(filter(None, applied))
    if is_replayed:
        reply.headers["Idempotent-Replayed"] = "true"
    return reply


def _wait(service: Service, job: Job, seconds: float) -> tuple[Job, bool]:
    """The job after at most `seconds`, and whether it was waited for.

    No wait when as many requests wait as may: the other web threads must stay free for other routes.
    """
    if seconds <= 0 or job.is_final:
        return job, True
    if not service.waits.acquire(blocking=False):
        log.warning("sync_wait_refused", max_sync_waits=service.settings.max_sync_waits)
        return job, False
    try:
        with service.metrics.waits.track_inprogress():
            if job.deadline is not None:
                seconds = min(seconds, max(0.0, (job.deadline - utc_now()).total_seconds()))
            # A server that is told to stop answers 202; the job goes on without it.
            job = service.store.wait_final(job.job_id, seconds, is_over=service.closing.is_set)
            return service.store.expire_if_overdue(job), True
    except StoreUnavailable:
        # The job is queued and goes on when Redis is back; a 503 would lose the client its job_id.
        log.warning("sync_wait_broken", exc_info=True)
        return job, False
    except JobNotFound as exc:
        raise JobCanceled(f"The job {job.job_id} was deleted while this request waited for it") from exc
    finally:
        service.waits.release()
