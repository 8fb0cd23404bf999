"""From a request to a queued job: the record and the message, made once for each Idempotency-Key."""

import hashlib
import json
from collections.abc import Callable

import structlog
from flask import g
from werkzeug.datastructures import FileStorage

from api.caller import caller
from api.headers import Terms
from api.parsing import picture_chunks, store_sources
from api.schemas import ProcessRequest, select_models
from api.service import Service
from shared.errors import ExtractionNotConfigured, IdempotencyKeyReused, InvalidRequest, JobNotFound, StoreUnavailable
from shared.jobs import SIDES, Job, new_job, new_job_id
from shared.messages import send_plan
from shared.store import Claim

#: Puts a job of this id on record; None, and nothing is left, when the claim was another's by then.
Maker = Callable[[str, Claim | None], Job | None]

log = structlog.get_logger(__name__)

#: How long one look for the job of another request with the same key lasts (ms). That request's failure ends it.
_LOOK_MS = 1000


def accept(service: Service, asked: ProcessRequest, terms: Terms) -> tuple[Job, bool]:
    """The job of a request, and whether an earlier request with the same Idempotency-Key had made it.

    Whatever fails, nothing stays behind.

    Raises:
        IdempotencyKeyReused: the key stands for a request that asked for something else.
        QueueFull: too many jobs wait.
        ExtractionNotConfigured: the job insists on it, and workers are running that all cannot.
        InvalidRequest: it asks for a model or a webhook that there is not.
    """
    models = select_models(asked.options, service.settings.models)
    if asked.options.webhook is not None and not service.settings.webhook_secret.get_secret_value():
        raise InvalidRequest("options.webhook: webhooks are off here, because the service has no WEBHOOK_SECRET")
    if asked.options.extract == "always":
        _check_extraction(service)

    def make(job_id: str, claim: Claim | None) -> Job | None:
        try:
            service.store.raise_if_full()  # before the pictures are written
            job = new_job(
                job_id=job_id,
                client_id=asked.id,
                sources=store_sources(asked, job_id, service.storage, service.settings.source_limit_bytes),
                models=models,
                options=asked.options.model_dump(exclude_unset=True),
                request_id=g.request_id,
                caller=caller(),
                deadline=terms.deadline,
                use_cache=terms.use_cache,
            )
            if enqueue(service, job, claim):
                return job
            service.storage.remove_work(job_id)
            return None
        except StoreUnavailable:
            # Redis may have taken the record before it went. Then the job is done, and its key finds it; if not, the
            # pictures go with the next sweep.
            raise
        except BaseException:
            service.storage.remove_work(job_id)
            raise

    return once(service, terms.idempotency_key, lambda: digest_of(asked), make)


def _check_extraction(service: Service) -> None:
    """Refuse a job that no worker could do. The key is known to workers alone, so their reports say it.

    With no worker running the job is queued; the one that takes it decides.
    """
    workers = service.store.workers()
    if workers and not any(worker.get("extraction") for worker in workers):
        raise ExtractionNotConfigured('options.extract is "always", but GEMINI_API_KEY is not set for the workers')


def enqueue(service: Service, job: Job, claim: Claim | None = None) -> bool:
    """Write the record, then send the message: each needs the one before.

    Returns:
        False, and nothing is left, when another request has the claim's key by now.
    """
    if not service.store.create(job, claim):
        return False
    try:
        send_plan(service.celery, job.job_id, g.request_id)
    except StoreUnavailable:
        if _can_be_undone(service, job):
            raise
        log.warning("plan_not_sent", job_id=job.job_id)  # the job is on record: a worker will miss its message
    service.metrics.jobs.inc()
    log.info("job_accepted", job_id=job.job_id, sides=job.sides, models=job.models, retry_of=job.retry_of)
    return True


def _can_be_undone(service: Service, job: Job) -> bool:
    try:
        service.store.delete(job)
    except StoreUnavailable:
        return False
    service.storage.remove_job(job.job_id)
    return True


def once(service: Service, key: str | None, digest: Callable[[], str], make: Maker) -> tuple[Job, bool]:
    """One job for all requests with this key: the first one makes it, the others wait until it is on record.

    Args:
        key: None makes a job of its own.
        digest: what the request asks for, as one word; not called without a key.
    Returns:
        The job, and whether an earlier request had made it.
    Raises:
        IdempotencyKeyReused: the key stands for a request that asked for something else.
    """
    if key is None:
        job = make(new_job_id(), None)
        assert job is not None  # only a claim can be lost
        return job, False
    body = digest()
    while True:
        job_id = new_job_id()
        claim = service.store.claims.take(caller(), key, body, job_id)
        if claim.body != body:
            raise IdempotencyKeyReused(
                "Idempotency-Key: was sent before with another request; use a new key for every new job"
            )
        if claim.job_id == job_id:
            try:
                job = make(job_id, claim)
            except BaseException:
                service.store.claims.release(claim)
                raise
            if job is not None:
                return job, False
        # Its first event is written with its record. None comes when that request fails or dies: the key is free then.
        elif service.store.events(claim.job_id, block_ms=_LOOK_MS):
            try:
                return service.store.get(claim.job_id), True
            except JobNotFound:
                continue


def digest_of(asked: ProcessRequest) -> str:
    """What makes two requests the same: the id, the options with their defaults, and the pictures.

    An upload is its bytes, whatever its file is called and however it came; a URL is its text.
    """
    sides: dict[str, list[str]] = {}
    for side in SIDES:
        value = getattr(asked.output, side)
        if isinstance(value, FileStorage) or (value is not None and value[:5].lower() == "data:"):
            picture = hashlib.sha256()
            for chunk in picture_chunks(side, value):
                picture.update(chunk)
            sides[side] = ["bytes", picture.hexdigest()]
            if isinstance(value, FileStorage):
                value.stream.seek(0)
        elif value is not None:
            sides[side] = ["url", value]
    parts = {"id": asked.id, "sides": sides, "options": asked.options.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
