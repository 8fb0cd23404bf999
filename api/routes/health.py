"""GET /health, /live, /ready, /metrics: for operators and orchestrators."""

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.caller import is_trusted
from api.errors import RETRY_AFTER_S
from api.health import read_health
from api.schemas import Alive, HealthReport, ModelHealth
from api.service import get_service
from shared.errors import ModelsNotReady, StoreUnavailable

routes = Blueprint("health", __name__)


@routes.get("/health")
def health() -> Response:
    """What works and what does not: 200 when a worker has all models ready, else 503 with the same body."""
    report = read_health(get_service())
    if not is_trusted():
        report = _without_details(report)
    reply = Response(report.model_dump_json(), content_type="application/json")
    reply.headers["Cache-Control"] = "no-store"
    if report.status != "ready":
        reply.status_code = 503
        reply.headers["Retry-After"] = str(RETRY_AFTER_S)
    return reply


@routes.get("/live")
def live() -> Response:
    """200 while the process answers at all."""
    return _alive("alive")


@routes.get("/ready")
def ready() -> Response:
    """200 when a job sent now would be done, else a 503 problem."""
    report = read_health(get_service())
    if report.redis.status != "ready":
        raise StoreUnavailable("Redis does not answer; check that it runs and that REDIS_URL is right")
    if report.status != "ready":
        states = ", ".join(f"{name} is {model.status}" for name, model in report.models.items())
        raise ModelsNotReady(f"No worker has all models ready: {states}")
    return _alive("ready")


@routes.get("/metrics")
def metrics() -> Response:
    """Everything that is counted and measured, in Prometheus' text format."""
    return Response(get_service().metrics.render(), content_type=CONTENT_TYPE_LATEST)


def _without_details(report: HealthReport) -> HealthReport:
    """For callers without a key: what works, not on which machines or why not."""
    models = {name: ModelHealth(status=model.status, profile=model.profile) for name, model in report.models.items()}
    return report.model_copy(update={"models": models, "workers": []})


def _alive(status: str) -> Response:
    reply = Response(Alive.model_validate({"status": status}).model_dump_json(), content_type="application/json")
    reply.headers["Cache-Control"] = "no-store"
    return reply
