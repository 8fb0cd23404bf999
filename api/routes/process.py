"""POST /process: queue a job and, unless the client prefers otherwise, wait for its result."""

import re
from dataclasses import dataclass

import structlog
from flask import Blueprint, Response, g, request

from api.parsing import parse_request, store_sources
from api.prefer import parse_prefer
from api.replies import envelope_reply, job_path, result_reply
from api.schemas import ProcessRequest, select_models
from api.service import Service, get_service
from shared.errors import InvalidRequest, StoreUnavailable
from shared.jobs import Job, new_job, new_job_id
from shared.messages import send_plan
from shared.settings import Settings

routes = Blueprint("process", __name__)
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Wait:
    """How long this request waits (s), and the preferences that made it so."""

    seconds: float
    wait_applied: str = ""
    async_applied: str = ""


@routes.post("/process")
def process() -> Response:
    service = get_service()
    wait = _read_wait(service.settings)
    job = _accept(service, parse_request(request))
    with structlog.contextvars.bound_contextvars(job_id=job.job_id):
        log.info("job_accepted", sides=job.sides, models=job.models)
        job, has_waited = _wait(service, job, wait.seconds)
    applied = [wait.wait_applied] if has_waited else []
    if job.is_final:
        reply = result_reply(job)
    else:
        reply = envelope_reply(service, job, 202)
        reply.headers["Location"] = job_path(job.job_id)
        reply.headers["Retry-After"] = "1"
        applied.insert(0, wait.async_applied)
    if any(applied):
        reply.headers["Preference-Applied"] = ", ".join(filter(None, applied))
    return reply


def _read_wait(settings: Settings) -> Wait:
    """The query says more exactly what is meant than a preference, so it wins; the limit holds for both."""
    unknown = [name for name in request.args if name != "wait"]
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


def _accept(service: Service, asked: ProcessRequest) -> Job:
    """Write the pictures, the record and the message, in this order: each needs the one before.

    Whatever fails, nothing stays behind.
    """
    job_id = new_job_id()
    models = select_models(asked.options, service.settings.models)
    try:
        job = new_job(
            job_id=job_id,
            client_id=asked.id,
            sources=store_sources(asked, job_id, service.storage, service.settings.source_limit_bytes),
            models=models,
            options=asked.options.model_dump(exclude_unset=True),
            request_id=g.request_id,
        )
        service.store.create(job)
        try:
            send_plan(service.celery, job_id, g.request_id)
        except BaseException:
            service.store.delete(job_id)
            raise
    except BaseException:
        service.storage.remove_work(job_id)
        raise
    service.metrics.jobs.inc()
    return job


def _wait(service: Service, job: Job, seconds: float) -> tuple[Job, bool]:
    """The job after at most `seconds`, and whether it was waited for.

    No wait when as many requests wait as may: the other web threads must stay free for other routes.
    """
    if seconds <= 0:
        return job, True
    if not service.waits.acquire(blocking=False):
        log.warning("sync_wait_refused", max_sync_waits=service.settings.max_sync_waits)
        return job, False
    try:
        with service.metrics.waits.track_inprogress():
            return service.store.wait_final(job.job_id, seconds), True
    except StoreUnavailable:
        # The job is queued and goes on when Redis is back; a 503 would lose the client its job_id.
        log.warning("sync_wait_broken", exc_info=True)
        return job, False
    finally:
        service.waits.release()
