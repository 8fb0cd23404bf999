"""GET /outputs/{name}: the result files."""

from flask import Blueprint, Response, request, send_from_directory
from werkzeug.exceptions import NotFound

from api.service import Service, get_service
from shared.errors import AppError, JobNotFound, OutputExpired, OutputNotFound, StoreUnavailable
from shared.storage import job_of

routes = Blueprint("outputs", __name__)


@routes.get("/outputs/<name>")
def output(name: str) -> Response:
    service = get_service()
    storage = service.storage
    storage.path(name)  # refuses every name that is not an output's, before the disk is touched
    good_for_s = service.urls.check(name, request.args)
    try:
        reply = send_from_directory(storage.outputs_dir, name, conditional=True)
    except NotFound as exc:
        raise _missing(service, name) from exc
    # The name holds the job's id, so what it stands for never changes.
    reply.headers["Cache-Control"] = (
        "public, max-age=31536000, immutable" if good_for_s is None else f"private, max-age={good_for_s}, immutable"
    )
    return reply


def _missing(service: Service, name: str) -> AppError:
    """Gone, when a job delivered this file or had all of its files removed; else it never was, as far as is known."""
    job_id = job_of(name) or ""
    try:
        is_gone = any(url.endswith(f"/{name}") for url in service.store.get(job_id).output_urls)
    except JobNotFound:
        is_gone = service.store.removed_outputs.has(job_id)
    except StoreUnavailable:
        is_gone = False
    if is_gone:
        return OutputExpired(f"{name} was made and has been removed since; send the job again")
    return OutputNotFound(f"There is no output {name}; it was never made, or has been removed")
