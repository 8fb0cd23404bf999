"""What works and what does not, from Redis and the workers' reports."""

from typing import Any

from api.schemas import HealthReport, ModelHealth, QueueHealth, RedisHealth, WorkerHealth
from api.service import Service
from shared import __version__
from shared.errors import StoreUnavailable

#: Best first: a model counts as its furthest worker has it.
_RANK = ("ready", "loading", "failed")


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


def _is_ready(worker: dict[str, Any], models: tuple[str, ...]) -> bool:
    states = worker.get("models", {})
    return worker.get("status") == "ready" and all(states.get(name, {}).get("status") == "ready" for name in models)


def _best_report(name: str, workers: list[dict[str, Any]]) -> ModelHealth:
    reports = [worker["models"][name] for worker in workers if name in worker.get("models", {})]
    reports = [report for report in reports if report.get("status") in _RANK]
    if not reports:
        return ModelHealth(status="absent", error="No worker has reported this model; is a worker running?")
    return ModelHealth.model_validate(min(reports, key=lambda report: _RANK.index(report["status"])))
