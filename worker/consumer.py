"""A consumer that no message can end, nor a Redis that is full.

Celery discards messages that it cannot read, but not all of them: one without a content type, or an entry of the list
that is no message at all, ends the worker with an exception that it does not expect. What was read but not
acknowledged is then given back at the next start, and ends that one too.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer import Consumer
from kombu.transport import redis
from redis.exceptions import ResponseError

from shared.store.connection import is_memory_full
from worker.broker import ScriptedQoS, SharedClientChannel

log = structlog.get_logger(__name__)

#: How often a Redis at its memory limit is tried again (s).
_FULL_PAUSE_S = 0.5
#: What reading a message of a wrong form raises. Not OSError and not kombu's own: those mean that Redis is away.
_MALFORMED = (TypeError, ValueError, LookupError, AttributeError, RecursionError)


class TolerantConsumer(Consumer):  # type: ignore[misc]  # Celery is untyped
    """Celery's consumer, which also discards messages whose envelope is fine and whose rest is not."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            try:
                return handle(message)
            except _MALFORMED as exc:
                log.error("message_discarded", detail=repr(exc)[:300])
                return message.reject_log_error(log, self.connection_errors)

        return on_task_received


class _PatientQoS(ScriptedQoS):
    """Keeps a message that was taken until Redis has room to note that: it is nowhere else by then."""

    def append(self, message: Any, delivery_tag: Any) -> None:
        while True:
            try:
                super().append(message, delivery_tag)
                return
            except ResponseError as exc:
                if not is_memory_full(exc):
                    raise
                log.warning("redis_full", retry_s=_FULL_PAUSE_S)
                time.sleep(_FULL_PAUSE_S)


class _TolerantChannel(SharedClientChannel):
    QoS = _PatientQoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except _MALFORMED as exc:  # taken from the list already, so it is gone
            log.error("message_discarded", detail=repr(exc)[:300])
            return True


class TolerantTransport(redis.Transport):
    """The Redis transport, which also discards entries of the queue that are no messages."""

    Channel = _TolerantChannel
