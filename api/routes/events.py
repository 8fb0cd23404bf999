"""GET /jobs/{job_id}/events: what happens to a job, as server-sent events."""

import json
import re
from collections.abc import Iterator
from typing import Any

import structlog
from flask import Blueprint, Response, request

from api.routes.jobs import find_job
from api.service import Service, get_service
from shared.errors import InvalidRequest, JobNotFound, StoreUnavailable, TooManyEventStreams

routes = Blueprint("events", __name__)
log = structlog.get_logger(__name__)

#: A comment is sent after so long without an event (s): proxies keep the connection, and a client that has gone is
#: noticed and its thread is free.
HEARTBEAT_S = 15.0
#: One look for events (s); between two the stream notices that the server stops.
_LOOK_S = 1.0
#: How long a client that lost its connection waits before it asks again (ms).
_RECONNECT_MS = 2000


@routes.get("/jobs/<job_id>/events")
def events(job_id: str) -> Response:
    """All events after the last one that the client has seen, then new ones as they come, until the final one."""
    service = get_service()
    after = _read_last_id()
    job = find_job(service, job_id)
    if job.is_final and not service.store.events(job_id, after):
        return Response(status=204)  # tells an EventSource that asks again after the end to stop
    if not service.streams.acquire(blocking=False):
        limit = service.settings.max_event_streams
        raise TooManyEventStreams(f"{limit} event streams are open (MAX_EVENT_STREAMS); ask GET /jobs/{job_id} instead")
    reply = Response(_stream(service, job_id, after), content_type="text/event-stream")
    reply.call_on_close(service.streams.release)
    reply.headers["Cache-Control"] = "no-store"
    reply.headers["X-Accel-Buffering"] = "no"  # nginx would collect events before it passes them on
    return reply


def _read_last_id() -> str:
    unknown = [name for name in request.args if name != "last_event_id"]
    if unknown:
        raise InvalidRequest(f"?{unknown[0][:100]}: unknown query parameter")
    # The header is newer: a browser that reconnects sends it to the address it was first given.
    given = [value for value in (request.headers.get("Last-Event-ID"), request.args.get("last_event_id")) if value]
    if not all(re.fullmatch(r"[0-9]{1,15}-[0-9]{1,15}", value) for value in given):
        raise InvalidRequest("Last-Event-ID: must be the id of an event of this job, such as 1764000000000-0")
    return given[0] if given else "0-0"


def _stream(service: Service, job_id: str, after: str) -> Iterator[str]:
    yield f"retry: {_RECONNECT_MS}\n\n"
    quiet_s = 0.0
    with service.metrics.streams.track_inprogress():
        try:
            while not service.closing.is_set():
                found = service.store.events(job_id, after, block_ms=int(_LOOK_S * 1000))
                for after, event in found:
                    yield _frame(after, service.urls.sign(event, job_id))
                    if event.get("final"):
                        return
                quiet_s = 0.0 if found else quiet_s + _LOOK_S
                if quiet_s >= HEARTBEAT_S:
                    quiet_s = 0.0
                    find_job(service, job_id)  # ends the stream of a job that is gone, and a job that is overdue
                    yield ": still here\n\n"
        except (StoreUnavailable, JobNotFound) as exc:
            # The status is long sent. A client that asks again is told what is wrong.
            log.warning("event_stream_broken", job_id=job_id, code=exc.code)


def _frame(event_id: str, event: dict[str, Any]) -> str:
    # JSON has no line breaks of its own, so one data line is enough.
    return f"id: {event_id}\nevent: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n"
