"""What /metrics shows beside the web process's own counts: read from Redis and the workers' reports when it is asked.

The counters are those of all workers together (shared/store/counters.py): they survive restarts of API and workers, and
begin again when Redis loses its data. Labels are few and bounded: tasks, error codes, states, models, worker names.
"""

import shutil
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.errors import error_classes
from api.health import read_health
from api.schemas import HealthReport, WorkerMemory
from api.service import Service
from shared.errors import StoreUnavailable
from shared.jobs import FINAL
from shared.messages import CELL_QUEUE, QUEUE, TASKS, WEBHOOK_QUEUE
from shared.store import counters

_CODES = tuple(sorted(error_classes()))
#: Name in Redis -> (metric, what it counts, label, its values). Each value is shown from the start, as 0: a counter
#: that first appears at 1 has, for Prometheus, not increased.
_COUNTERS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    counters.DELIVERIES: ("cutout_deliveries", "Tasks given to workers, again or for the first time", "task", TASKS),
    counters.REDELIVERIES: (
        "cutout_redeliveries",
        "Tasks given to a worker that had been given to one before",
        "task",
        TASKS,
    ),
    counters.RETRIES: (
        "cutout_retries",
        "Tries after the first: of webhooks, extractions, jobs",
        "kind",
        ("webhook", "extraction", "job"),
    ),
    counters.CELL_FAILURES: ("cutout_cell_failures", "Cells that failed, by error code", "code", _CODES),
    counters.JOBS_ENDED: (
        "cutout_jobs_ended",
        "Jobs that ended, by their final status",
        "status",
        tuple(sorted(FINAL)),
    ),
    counters.REMOVED_JOBS: (
        "cutout_outputs_removed_jobs",
        "Jobs whose outputs the sweep removed",
        "reason",
        ("age", "size", "unfinished"),
    ),
    counters.REMOVED_BYTES: (
        "cutout_outputs_removed_bytes",
        "Bytes of outputs that the sweep removed",
        "reason",
        ("age", "size", "unfinished"),
    ),
    counters.ABANDONED: (
        "cutout_abandoned_removed",
        "What killed processes left and the sweep removed",
        "kind",
        ("part", "work"),
    ),
}
_QUEUES = (QUEUE, CELL_QUEUE, WEBHOOK_QUEUE)
_WORKER_STATES = ("loading", "ready", "draining", "failed")


class Measures(Collector):
    """Reads everything anew for each scrape; what Redis cannot say now is left out."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        report = read_health(self._service)
        yield _gauge("cutout_redis_up", "1 when Redis answers", report.redis.status == "ready")
        yield from _models(report)
        yield from _workers(report)
        yield from self._disk()
        if report.redis.status == "ready":
            try:
                yield from self._stored()
            except StoreUnavailable:
                return  # it went away between the two

    def _stored(self) -> Iterator[Metric]:
        store = self._service.store
        yield _gauge("cutout_queue_depth", "Jobs no worker has begun", store.queue_depth())
        yield _labelled("cutout_messages_waiting", "Messages in a queue", "queue", store.waiting_messages(_QUEUES))
        ages = {"jobs": store.oldest_queued_s(), "cells": store.oldest_message_s(CELL_QUEUE)}
        yield _labelled(
            "cutout_queue_age_seconds",
            "jobs: age of the oldest job no worker has begun; cells: since the job of the next waiting cell was begun",
            "queue",
            ages,
        )
        memory = store.memory.read()
        yield _gauge("cutout_redis_memory_bytes", "Memory that Redis uses", memory.used)
        yield _gauge("cutout_redis_memory_limit_bytes", "Its maxmemory; 0: no limit", memory.limit)
        found = store.counters.read()
        for name, (metric, text, label, values) in _COUNTERS.items():
            family = CounterMetricFamily(metric, text, labels=[label])
            for value in values:
                family.add_metric([value], found.get(name, {}).get(value, 0.0))
            yield family
        for name, metric, text in (
            (counters.OUTPUT_BYTES, "cutout_outputs_bytes", "Bytes of outputs at the latest sweep"),
            (counters.OUTPUT_FILES, "cutout_outputs_files", "Outputs at the latest sweep"),
        ):
            if name in found:
                yield _gauge(metric, text, found[name][""])

    def _disk(self) -> Iterator[Metric]:
        settings = self._service.settings
        yield _gauge("cutout_outputs_limit_bytes", "OUTPUT_MAX_BYTES; 0: no limit", settings.output_max_bytes)
        try:
            usage = shutil.disk_usage(self._service.storage.outputs_dir)
        except OSError:
            return  # the folder is made with the first output
        yield _gauge("cutout_outputs_disk_free_bytes", "Free bytes of the disk that outputs are on", usage.free)
        yield _gauge("cutout_outputs_disk_size_bytes", "Size of that disk", usage.total)


def _models(report: HealthReport) -> Iterator[Metric]:
    for status in ("ready", "failed"):
        yield _labelled(
            f"cutout_model_{status}",
            f"1 when the worker that is furthest with the model has it {status}",
            "model",
            {name: model.status == status for name, model in report.models.items()},
        )


def _workers(report: HealthReport) -> Iterator[Metric]:
    states = [worker.status for worker in report.workers]
    yield _labelled(
        "cutout_workers",
        "Workers that report, by state",
        "state",
        {name: states.count(name) for name in _WORKER_STATES},
    )
    yield _labelled(
        "cutout_device_waiting",
        "Pictures that wait for a worker's device",
        "worker",
        {worker.name: worker.device_waiting or 0 for worker in report.workers},
    )
    memory = GaugeMetricFamily(
        "cutout_worker_memory_bytes",
        "Memory of a worker: resident, resident_peak, device, device_peak",
        labels=["worker", "kind"],
    )
    for worker in report.workers:
        for kind, value in (worker.memory or WorkerMemory()).model_dump(exclude_none=True).items():
            memory.add_metric([worker.name, kind.removesuffix("_bytes")], value)
    yield memory


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family
