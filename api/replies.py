"""The two replies about a job: its envelope, and its result or error once it has ended."""

import json
from typing import Any

from flask import Response

from api.errors import record_problem
from api.schemas import JobEnvelope, JobList, JobSummary, Links, Progress
from api.service import Service
from shared.errors import StoreUnavailable
from shared.jobs import FINAL_CELLS, Job, JobStatus
from shared.store import Page, WebhookReport


def job_path(job_id: str) -> str:
    return f"/jobs/{job_id}"


def envelope(service: Service, job: Job) -> JobEnvelope:
    """How the job stands, as clients see it."""
    position = _queue_position(service, job)
    return JobEnvelope(
        **_summary(service, job),
        queue_position=position,
        eta_seconds=_eta_s(service, job, position),
        cells=job.cells,
        extraction=job.extraction,
        tokens=job.tokens,
        result=job.result,
        error=job.error,
        webhook=_webhook(service, job),
    )


def _summary(service: Service, job: Job) -> dict[str, Any]:
    """What the envelope and an entry of a listing have in common."""
    address = service.settings.base_url + job_path(job.job_id)
    return {
        "job_id": job.job_id,
        "id": job.id,
        "status": job.status,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.completed_at,
        "deadline": job.deadline,
        "outputs_removed_at": job.outputs_removed_at,
        "retry_of": job.retry_of,
        "progress": Progress(done=sum(cell.status in FINAL_CELLS for cell in job.cells.values()), total=len(job.cells)),
        "links": Links(
            self=address,
            events=f"{address}/events",
            cancel=f"{address}/cancel",
            retry=f"{address}/retry",
            outputs={name: cell.url for name, cell in job.cells.items() if cell.url and not job.outputs_removed_at},
        ),
    }


def list_reply(service: Service, page: Page) -> Response:
    """A page of a listing."""
    body = JobList(jobs=[JobSummary(**_summary(service, job)) for job in page.jobs], next_cursor=page.next_cursor)
    jobs = [service.urls.sign(entry.model_dump(mode="json"), entry.job_id) for entry in body.jobs]
    return _json({**body.model_dump(mode="json"), "jobs": jobs})


def envelope_reply(service: Service, job: Job, status: int) -> Response:
    return _json(service.urls.sign(envelope(service, job).model_dump(mode="json"), job.job_id), status)


def _json(body: dict[str, Any], status: int = 200) -> Response:
    """A reply that nobody may keep."""
    reply = Response(json.dumps(body), status, content_type="application/json")
    reply.headers["Cache-Control"] = "no-store"
    return reply


def result_reply(service: Service, job: Job) -> Response:
    """The reply for a job that has ended: its result, or its error as a problem when there is no cutout."""
    if job.result is not None and job.status != JobStatus.FAILED:
        removed_at = job.outputs_removed_at
        note = {} if removed_at is None else {"outputs_removed_at": removed_at.isoformat()}
        return _json(service.urls.sign({**job.result, **note}, job.job_id))
    cells = {name: cell.model_dump(mode="json") for name, cell in job.cells.items()}
    extraction = {side: report.model_dump(mode="json") for side, report in job.extraction.items()}
    members = {"job_id": job.job_id, "cells": cells, "extraction": extraction}
    return record_problem(job.error, service.urls.sign(members, job.job_id))


def _queue_position(service: Service, job: Job) -> int | None:
    if job.status != JobStatus.QUEUED:
        return None
    try:
        return service.store.queue_position(job.job_id)
    except StoreUnavailable:
        return None  # a job that was just accepted is worth answering without its place


def _eta_s(service: Service, job: Job, position: int | None) -> float | None:
    if position is None:
        return None
    try:
        open_cells = sum(cell.status not in FINAL_CELLS for cell in job.cells.values())
        return service.store.pace.eta_s(position, open_cells)
    except StoreUnavailable:
        return None


def _webhook(service: Service, job: Job) -> WebhookReport | None:
    try:
        return service.store.deliveries.report(job)
    except StoreUnavailable:
        return None  # as above
