"""Prometheus metrics of the web process itself; what Redis knows is in api/measures.py. Base units, few labels."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

#: Seconds; POST /process waits for seconds to a minute, every other route takes milliseconds.
_BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)


class ApiMetrics:
    """The metrics of one app, in a registry of its own so that two apps in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cutout_http_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cutout_http_request_seconds",
            "Time to answer",
            ["method", "route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.jobs = Counter("cutout_jobs_accepted", "Jobs put into the queue", registry=self.registry)
        self.waits = Gauge("cutout_sync_waits", "Requests waiting for their job", registry=self.registry)
        self.streams = Gauge("cutout_event_streams", "Event streams that are open", registry=self.registry)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
