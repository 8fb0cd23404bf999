"""The two replies about a job: its envelope, and its result or error once it has ended."""

import json

from flask import Response

from api.errors import record_problem
from api.schemas import JobEnvelope, Links, Progress
from api.service import Service
from shared.errors import StoreUnavailable
from shared.jobs import FINAL_CELLS, Job, JobStatus


def job_path(job_id: str) -> str:
    return f"/jobs/{job_id}"


def envelope(service: Service, job: Job) -> JobEnvelope:
    """How the job stands, as clients see it."""
    return JobEnvelope(
        job_id=job.job_id,
        id=job.id,
        status=job.status,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        queue_position=_queue_position(service, job),
        progress=Progress(done=sum(cell.status in FINAL_CELLS for cell in job.cells.values()), total=len(job.cells)),
        cells=job.cells,
        result=job.result,
        error=job.error,
        links=Links(
            self=service.settings.base_url + job_path(job.job_id),
            outputs={name: cell.url for name, cell in job.cells.items() if cell.url},
        ),
    )


def envelope_reply(service: Service, job: Job, status: int) -> Response:
    reply = Response(envelope(service, job).model_dump_json(), status, content_type="application/json")
    reply.headers["Cache-Control"] = "no-store"
    return reply


def result_reply(job: Job) -> Response:
    """The reply for a job that has ended: its result, or its error as a problem when there is no cutout."""
    if job.result is not None and job.status != JobStatus.FAILED:
        reply = Response(json.dumps(job.result), 200, content_type="application/json")
        reply.headers["Cache-Control"] = "no-store"
        return reply
    cells = {name: cell.model_dump(mode="json") for name, cell in job.cells.items()}
    return record_problem(job.error, {"job_id": job.job_id, "cells": cells})


def _queue_position(service: Service, job: Job) -> int | None:
    if job.status != JobStatus.QUEUED:
        return None
    try:
        return service.store.queue_position(job.job_id)
    except StoreUnavailable:
        return None  # a job that was just accepted is worth answering without its place
