"""Requests that no client means well with, sent to the API as it really runs."""

import contextlib
import http.client
import socket
from collections.abc import Iterator

import pytest

from shared.settings import load_settings
from tests.hostile.bad_requests import Attempt, attempts
from tests.hostile.building import quarters, saved
from tests.hostile.stack import Stack
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def stack(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("requests")
    settings = load_settings(redis_url=redis_server.url, outputs_dir=folder / "outputs")
    with Stack(settings, folder, UPLOAD_STALL_S="5") as stack:
        yield stack


def send(stack: Stack, data: bytes) -> tuple[int, str, bytes]:
    """Status, content type and body of the first answer; what the server does not read of the request is no error."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # it has answered before the end
            connection.sendall(data)
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        return reply.status, reply.headers.get("Content-Type", ""), reply.read()


def test_each_has_its_status_and_none_is_a_fault_of_ours(stack: Stack) -> None:
    job = stack.post(data={"id": "1"}, files={"front": ("a.png", saved(quarters(), "PNG"))}).json()
    places = {"{output}": job["front_rmbg"].removeprefix(stack.url), "{events}": f"/jobs/{job['job_id']}/events"}
    problems = [problem for attempt in attempts() if (problem := mistake(stack, attempt, places))]
    assert problems == [], "\n".join(problems)
    assert len(attempts()) >= 180
    assert stack.get("/ready").status_code == 200
    assert "Traceback" not in stack.logs, stack.logs[-6000:]
    assert '"level": "error"' not in stack.api.log


def mistake(stack: Stack, attempt: Attempt, places: dict[str, str]) -> str | None:
    """What is wrong about the answer to a request, or None."""
    data = attempt.data
    for name, path in places.items():
        data = data.replace(name.encode(), path.encode())
    try:
        status, kind, body = send(stack, data)
    except (OSError, http.client.HTTPException) as exc:
        return f"{attempt.name} gave {exc!r}"
    if status not in attempt.statuses:
        return f"{attempt.name} gave {status} instead of {attempt.statuses}: {body[:200]!r}"
    # What gunicorn refuses before our code sees it is HTML; the statuses of both are in the README.
    if status >= 400 and not kind.startswith(("application/problem+json", "text/html")):
        return f"{attempt.name} gave {kind}"
    return None
