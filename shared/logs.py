"""Logging for every process: one line per event, from structlog and from the standard library alike.

Write `log = structlog.get_logger(__name__)` and `log.info("cell_done", cell=name, seconds=1.2)`. `bind_context` puts
request_id and job_id on every later line of the same thread or task. No image bytes, no secrets; should a secret of the
settings get into a line all the same (a library's message, a traceback), it is masked.
"""

import json
import logging
import logging.config
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

import structlog
from pydantic import SecretStr

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
    final.append(_masking(settings))
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
    # Our own events go to the same stream by a shorter way: through the standard library's loggers, records and
    # formatters a line costs twice as much, and a job writes some ten (docs/performance.md).
    (handler,) = logging.getLogger().handlers
    structlog.configure(
        processors=[*shared, *final],
        logger_factory=lambda name="": _LineLogger(name, handler),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.log_level)),
        cache_logger_on_first_use=False,
    )


class _LineLogger:
    """Writes finished lines to a handler's stream, one at a time with the handler's own."""

    def __init__(self, name: str, handler: logging.Handler) -> None:
        self.name = name  # what add_logger_name asks for
        self._handler = handler

    def msg(self, line: str) -> None:
        stream = self._handler.stream  # type: ignore[attr-defined]
        self._handler.acquire()
        try:
            # As the standard library: a line that cannot be written (a full disk) costs nobody's result.
            with suppress(OSError, ValueError):
                stream.write(line + "\n")
                stream.flush()
        finally:
            self._handler.release()

    debug = info = warning = error = critical = exception = msg


@contextmanager
def bind_context(**values: Any) -> Iterator[None]:
    """Put `values` (request_id=..., job_id=...) on every log line inside the block."""
    with structlog.contextvars.bound_contextvars(**values):
        yield


def _masking(settings: Settings) -> Any:
    """A last processor that blanks every secret of the settings in the finished line."""
    values = [getattr(settings, name) for name in Settings.model_fields]
    secrets = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
    # Also as it looks inside JSON. Short words and an address without a password are none that a line must not show.
    worth = [secret for secret in secrets if len(secret) >= 8 and ("://" not in secret or "@" in secret)]
    needles = {form for secret in worth for form in (secret, json.dumps(secret)[1:-1])}

    def mask(_: Any, __: str, line: str) -> str:
        for needle in needles:
            line = line.replace(needle, "***")
        return line

    return mask


def _in_reading_order(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return {**first, **event}
