"""GET /health, /live, /ready, /metrics: for operators and orchestrators."""

from typing import Any

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.caller import is_trusted
from api.errors import RETRY_AFTER_S
from api.schemas import Alive, HealthReport, ModelHealth, QueueHealth, RedisHealth, WorkerHealth, WorkerMemory
from api.service import Service, get_service
from shared import __version__
from shared.errors import ModelsNotReady, StoreUnavailable

routes = Blueprint("health", __name__)

#: Best first: a model counts as its furthest worker has it.
_RANK = ("ready", "loading", "failed")


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
    service = get_service()
    report = read_health(service)
    service.metrics.redis_up.set(report.redis.status == "ready")
    service.metrics.queue_depth.set(report.queue.depth or 0)
    for name, model in report.models.items():
        service.metrics.model_ready.labels(name).set(model.status == "ready")
    service.metrics.worker_memory.clear()  # a worker that is gone holds nothing
    service.metrics.device_waiting.clear()
    for worker in report.workers:
        service.metrics.device_waiting.labels(worker.name).set(worker.device_waiting or 0)
        for kind, value in (worker.memory or WorkerMemory()).model_dump(exclude_none=True).items():
            service.metrics.worker_memory.labels(worker.name, kind.removesuffix("_bytes")).set(value)
    return Response(service.metrics.render(), content_type=CONTENT_TYPE_LATEST)


def read_health(service: Service) -> HealthReport:
    """What Redis and the workers' reports say; never raises."""
    models = service.settings.models
    try:
        workers, depth = service.store.workers(), service.store.queue_depth()
        redis = RedisHealth(status="ready")
    except StoreUnavailable:
        workers, depth, redis = [], None, RedisHealth(status="unavailable")
    is_ready = any(_is_ready(worker, models) for worker in workers)
    return HealthReport(
        status="ready" if is_ready else "not_ready",
        version=__version__,
        redis=redis,
        queue=QueueHealth(depth=depth),
        models={name: _best_report(name, workers) for name in models},
        workers=[WorkerHealth.model_validate(worker) for worker in workers],
    )


def _without_details(report: HealthReport) -> HealthReport:
    """For callers without a key: what works, not on which machines or why not."""
    models = {name: ModelHealth(status=model.status, profile=model.profile) for name, model in report.models.items()}
    return report.model_copy(update={"models": models, "workers": []})


def _is_ready(worker: dict[str, Any], models: tuple[str, ...]) -> bool:
    states = worker.get("models", {})
    return worker.get("status") == "ready" and all(states.get(name, {}).get("status") == "ready" for name in models)


def _best_report(name: str, workers: list[dict[str, Any]]) -> ModelHealth:
    reports = [worker["models"][name] for worker in workers if name in worker.get("models", {})]
    reports = [report for report in reports if report.get("status") in _RANK]
    if not reports:
        return ModelHealth(status="absent", error="No worker has reported this model; is a worker running?")
    return ModelHealth.model_validate(min(reports, key=lambda report: _RANK.index(report["status"])))


def _alive(status: str) -> Response:
    reply = Response(Alive.model_validate({"status": status}).model_dump_json(), content_type="application/json")
    reply.headers["Cache-Control"] = "no-store"
    return reply
