"""The worker's report of itself, renewed while it lives."""

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import structlog

from shared.errors import StoreUnavailable
from shared.jobs import utc_now
from shared.settings import Settings
from shared.store import Store
from worker.ticker import Ticker

log = structlog.get_logger(__name__)

#: A report lives 15 s; three of these fit, so two may be lost.
HEARTBEAT_S = 4.0


class Heartbeat(Ticker):
    """Reports the worker's state to the store until it is closed."""

    def __init__(self, store: Store, settings: Settings) -> None:
        super().__init__("heartbeat", HEARTBEAT_S)
        self._store = store
        self._name = settings.worker_name
        self._info: dict[str, Any] = {"status": "loading", "device": None, "models": {}, "started_at": utc_now()}
        # Whether, never with what: the API refuses jobs that no worker could do, and knows no key.
        self._info["extraction"] = bool(settings.gemini_api_key.get_secret_value())
        for name in settings.models:
            self._info["models"][name] = {"status": "loading"}
        self._measure: Callable[[], dict[str, Any]] = dict
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.update()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, exc, tb)
        if self._info["status"] == "failed":
            return  # let /health say so until the report expires or another worker takes the name
        with contextlib.suppress(StoreUnavailable):  # the report expires by itself
            self._store.forget_worker(self._name)

    def update(self, **info: Any) -> None:
        """Change the report and send it at once."""
        with self._lock:
            if self._info["status"] == "failed":
                return
            self._info |= info
        self.tick()

    def model(self, name: str, **state: Any) -> None:
        """Change the report of one model and send it at once."""
        with self._lock:
            self._info["models"] = {**self._info["models"], name: state}
        self.tick()

    def watch(self, measure: Callable[[], dict[str, Any]]) -> None:
        """Add what `measure` returns to every report from now on."""
        self._measure = measure

    def fail(self, reason: str) -> None:
        """Report the worker and all of its models as failed, for good."""
        with self._lock:
            models = {
                name: {**state, "status": "failed", "error": reason} for name, state in self._info["models"].items()
            }
        self.update(status="failed", models=models)

    def tick(self) -> None:
        """Send the report as it stands."""
        with self._lock:
            info = {**self._info, **self._measure()}
        try:
            self._store.publish_worker(self._name, info)
        except StoreUnavailable as exc:
            log.warning("heartbeat_failed", detail=exc.message)
