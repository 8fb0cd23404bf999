"""POST /process: queue a job and, unless the client prefers otherwise, wait for its result."""

from flask import Blueprint, Response, request

from api.accepting import accept
from api.headers import read_terms
from api.parsing import parse_request
from api.service import get_service
from api.waiting import read_wait, waited_reply

routes = Blueprint("process", __name__)


@routes.post("/process")
def process() -> Response:
    service = get_service()
    wait = read_wait(service.settings)
    terms = read_terms(request.headers)
    job, is_replayed = accept(service, parse_request(request), terms)
    return waited_reply(service, job, wait, is_replayed=is_replayed)
