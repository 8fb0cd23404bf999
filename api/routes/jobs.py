"""/jobs: list jobs, ask for one, cancel it, delete it, try it again."""

import re

from flask import Blueprint, Response, request

from api.caller import caller
from api.headers import read_terms
from api.replies import envelope_reply, list_reply
from api.retrying import retry
from api.schemas import ID_LIMIT
from api.service import Service, get_service
from api.waiting import read_wait, waited_reply
from shared.errors import InvalidRequest, JobAlreadyFinal, JobNotFound
from shared.jobs import JOB_ID, Job, JobStatus

routes = Blueprint("jobs", __name__)

PAGE_DEFAULT, PAGE_LIMIT = 20, 100
_FILTERS = ("cursor", "id", "limit", "status")
#: How long whoever waits for a deleted job can still read of its end (s).
_LAST_WORDS_S = 60


@routes.get("/jobs")
def jobs() -> Response:
    service = get_service()
    unknown = [name for name in request.args if name not in _FILTERS]
    if unknown:
        raise InvalidRequest(f"?{unknown[0][:100]}: unknown query parameter")
    page = service.store.index.page(
        caller(),
        limit=_read_limit(),
        cursor=request.args.get("cursor"),
        statuses=_read_statuses(),
        client_id=_read_client_id(),
    )
    return list_reply(service, page)


@routes.get("/jobs/<job_id>")
def job(job_id: str) -> Response:
    service = get_service()
    return envelope_reply(service, find_job(service, job_id), 200)


@routes.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """The next step does not start; cells that are finished stay. Again: the same answer."""
    service = get_service()
    found = find_job(service, job_id)
    if not service.store.cancel(job_id):
        found = find_job(service, job_id)
        if found.status != JobStatus.CANCELED:
            raise JobAlreadyFinal(f"The job {job_id} is {found.status} and cannot be canceled any more")
    return envelope_reply(service, find_job(service, job_id), 200)


@routes.delete("/jobs/<job_id>")
def delete(job_id: str) -> Response:
    """Nothing is left: an open job is canceled first, and a step that runs removes what it has written."""
    service = get_service()
    found = find_job(service, job_id)
    was_open = service.store.cancel(job_id)
    service.store.delete(found, keep_events_s=_LAST_WORDS_S if was_open else 0)
    service.storage.remove_job(job_id)
    return Response(status=204)


@routes.post("/jobs/<job_id>/retry")
def again(job_id: str) -> Response:
    service = get_service()
    wait = read_wait(service.settings, ("wait", "cell"))
    terms = read_terms(request.headers)
    new, is_replayed = retry(service, find_job(service, job_id), request.args.getlist("cell"), terms)
    return waited_reply(service, new, wait, is_replayed=is_replayed)


def find_job(service: Service, job_id: str) -> Job:
    """The job as it stands; one that is past its deadline ends here.

    Raises:
        JobNotFound: no such job, or its record has expired.
    """
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(f"{job_id[:100]!r} is not a job id")
    return service.store.expire_if_overdue(service.store.get(job_id))


def _read_limit() -> int:
    text = request.args.get("limit", str(PAGE_DEFAULT))
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= PAGE_LIMIT:
        raise InvalidRequest(f"?limit: must be a number from 1 to {PAGE_LIMIT}")
    return int(text)


def _read_statuses() -> list[JobStatus]:
    try:
        return [JobStatus(word) for word in request.args.getlist("status")]
    except ValueError as exc:
        raise InvalidRequest(f"?status: must be one of {', '.join(JobStatus)}; give it again for more") from exc


def _read_client_id() -> str | None:
    text = request.args.get("id")
    if text is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise InvalidRequest(f"?id: must be an integer up to {ID_LIMIT} or a string of 1-64 of A-Z a-z 0-9 _ -")
    return text
