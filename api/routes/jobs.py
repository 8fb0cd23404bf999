"""GET /jobs/{job_id}: how a job stands."""

from flask import Blueprint, Response

from api.replies import envelope_reply
from api.service import get_service
from shared.errors import JobNotFound
from shared.jobs import JOB_ID

routes = Blueprint("jobs", __name__)


@routes.get("/jobs/<job_id>")
def job(job_id: str) -> Response:
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(f"{job_id[:100]!r} is not a job id")
    service = get_service()
    return envelope_reply(service, service.store.get(job_id), 200)
