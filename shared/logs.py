"""Logging for every process: one line per event, from structlog and from the standard library alike.

Write `log = structlog.get_logger(__name__)` and `log.info("cell_done", cell=name, seconds=1.2)`. `bind_context` puts
request_id and job_id on every later line of the same thread or task. No image bytes, no secrets.
"""

import logging
import logging.config
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

from shared.settings import Settings

#: Loggers of libraries that bring their own handlers, or say more than an operator wants.
_QUIETER = {"kombu": "WARNING", "amqp": "WARNING", "urllib3": "WARNING", "werkzeug": "WARNING", "PIL": "INFO"}
#: At INFO these print arguments and whole results of every task.
_QUIETER |= {"celery.app.trace": "WARNING", "celery.worker.strategy": "WARNING"}
_REROUTED = ("celery", "celery.task", "celery.worker", "gunicorn.error", "gunicorn.access", "py.warnings")


def configure_logging(settings: Settings) -> None:
    """Send all log events of this process to stderr as JSON lines (or readable text). May be called again.

    In a Celery worker connect it to the `setup_logging` signal, or Celery adds its own handlers.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        final: list[Any] = [
            structlog.processors.format_exc_info,
            _in_reading_order,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        final = [structlog.dev.ConsoleRenderer(colors=False)]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": [*shared, structlog.stdlib.ExtraAdder()],
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"handlers": ["stderr"], "level": settings.log_level},
            "loggers": {
                **{name: {"handlers": [], "propagate": True} for name in _REROUTED},
                **{name: {"level": level} for name, level in _QUIETER.items()},
            },
        }
    )
    logging.captureWarnings(True)


@contextmanager
def bind_context(**values: Any) -> Iterator[None]:
    """Put `values` (request_id=..., job_id=...) on every log line inside the block."""
    with structlog.contextvars.bound_contextvars(**values):
        yield


def _in_reading_order(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return {**first, **event}
