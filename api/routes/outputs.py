"""GET /outputs/{name}: the result files."""

from flask import Blueprint, Response, send_from_directory
from werkzeug.exceptions import NotFound

from api.service import get_service
from shared.errors import OutputNotFound

routes = Blueprint("outputs", __name__)


@routes.get("/outputs/<name>")
def output(name: str) -> Response:
    storage = get_service().storage
    storage.path(name)  # refuses every name that is not an output's, before the disk is touched
    try:
        reply = send_from_directory(storage.outputs_dir, name, conditional=True)
    except NotFound as exc:
        raise OutputNotFound(f"There is no output {name}; it was never made, or has been removed") from exc
    # The name holds the job's id, so what it stands for never changes.
    reply.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return reply
