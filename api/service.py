"""What the views need, in one object that hangs on the app."""

import threading
from dataclasses import dataclass, field
from typing import cast

from celery import Celery
from flask import current_app

from shared.messages import make_celery
from shared.metrics import ApiMetrics
from shared.settings import Settings
from shared.signing import OutputUrls
from shared.storage import FolderStorage
from shared.store import Store


@dataclass(frozen=True)
class Service:
    """The app's settings and its connections; all are safe to share between web threads.

    Attributes:
        waits: one permit per request that may wait for its job at the same time.
        streams: one permit per event stream that may be open at the same time.
        closing: set when the server is told to stop, so that open streams and waits end.
    """

    settings: Settings
    store: Store
    storage: FolderStorage
    urls: OutputUrls
    celery: Celery
    waits: threading.BoundedSemaphore
    streams: threading.BoundedSemaphore
    closing: threading.Event = field(default_factory=threading.Event)
    metrics: ApiMetrics = field(default_factory=ApiMetrics)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Service":
        """Nothing is connected yet, so an app starts while Redis is still down."""
        return cls(
            settings=settings,
            store=Store.from_settings(settings),
            storage=FolderStorage(settings.outputs_dir, settings.base_url),
            urls=OutputUrls(settings),
            celery=make_celery(settings, "api"),
            waits=threading.BoundedSemaphore(settings.max_sync_waits),
            streams=threading.BoundedSemaphore(settings.max_event_streams),
        )


def get_service() -> Service:
    """The service of the app that handles the current request."""
    return cast(Service, current_app.extensions["service"])
