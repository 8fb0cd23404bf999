"""A job's changes as server-sent events, read to the last one over as many connections as it takes."""

import codecs
import json
import math
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import requests
from urllib3.exceptions import HTTPError

from client.errors import CONNECTION_FAILED, CutoutError
from client.replies import Event
from client.transport import Repeat, Transport, connection_error

#: Longest silence (s). The service sends a comment more often than that, so longer means that nobody is there.
SILENCE_S = 45.0
_CHUNK = 1 << 16
_LINE_END = re.compile(r"\r\n|\n|\r(?!\Z)")


def read_events(
    transport: Transport, path: str, after: str | None = None, *, until: float = math.inf, repeat: Repeat = "always"
) -> Iterator[Event]:
    """The changes after `after` (None: from the beginning), until the last one.

    Args:
        path: the job's route, /jobs/{job_id}/events.
        until: time.monotonic() at which to stop; noticed with the next event or comment, at most SILENCE_S late.
        repeat: whether to try again when the service refuses.
    Raises:
        CutoutError: there is no such job, or no connection lasts.
    """
    patience = transport.patience()
    options: dict[str, Any] = {"repeat": repeat, "ok": (200, 204), "stream": True, "read_timeout_s": SILENCE_S}
    while True:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if after:
            headers["Last-Event-ID"] = after
        error = CutoutError(CONNECTION_FAILED, f"{path} ended before the job did", retryable=True)
        try:
            with transport.request("GET", path, headers=headers, **options) as reply:
                if reply.status_code == 204:  # the job has ended, and you have seen it all
                    return
                for event in parse_events(_chunks(reply, until)):
                    after = event.id or after
                    patience = transport.patience()  # the connection works
                    yield event
                    if event.is_final:
                        return
        except (requests.RequestException, HTTPError, OSError) as exc:
            error = connection_error(transport.base_url + path, exc)
        if time.monotonic() >= until:
            return
        patience.pause(error)


def _chunks(reply: requests.Response, until: float) -> Iterator[bytes]:
    # read1: as it comes. iter_content waits for a full chunk, or reads byte by byte.
    while time.monotonic() < until and (chunk := reply.raw.read1(_CHUNK)):
        yield chunk


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events in a text/event-stream (HTML standard, section 9.2.6); comments and what has no JSON are left out."""
    name, event_id, data = "", "", list[str]()
    for line in _lines(chunks):
        if not line:
            if (change := _object("\n".join(data))) is not None:
                yield Event(id=event_id, type=name or "message", data=change)
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id":
            event_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The complete lines. A chunk may end anywhere, also inside a character or between CR and LF."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for chunk in chunks:
        *lines, rest = _LINE_END.split(rest + decoder.decode(chunk))
        yield from lines


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
