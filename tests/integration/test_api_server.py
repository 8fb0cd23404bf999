"""The API as it really runs: gunicorn with our configuration, in its own process, on a real Redis."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from shared.jobs import JobStatus
from shared.settings import Settings
from shared.store import Store
from tests.conftest import PlayedWorker, eventually
from tests.redis_server import RedisServer, free_port

ROOT = Path(__file__).parents[2]
BODY = {"id": 123, "output": {"front": "https://example.com/front.png"}}


class Server:
    """A gunicorn process and what it wrote."""

    def __init__(self, settings: Settings, log: Path, **environment: str) -> None:
        self.port, self._log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        env = {
            **os.environ,
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "OUTPUTS_DIR": str(settings.outputs_dir),
            "BASE_URL": self.url,
            "API_PORT": str(self.port),
            **environment,
        }
        command = [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.app:create_app()"]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def is_live(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return requests.get(f"{self.url}/live", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def waits(self) -> float:
        text = requests.get(f"{self.url}/metrics", timeout=5).text
        return float(next(line for line in text.splitlines() if line.startswith("cutout_sync_waits ")).split()[1])

    def close(self) -> None:
        self.process.kill()
        self.process.wait(20)


@pytest.fixture
def server(settings: Settings, tmp_path: Path) -> Iterator[Server]:
    server = Server(settings, tmp_path / "api.log", API_THREADS="8", MAX_SYNC_WAITS="4", MAX_EVENT_STREAMS="2")
    try:
        eventually(server.is_live, 60)
        yield server
    finally:
        server.close()


def post(server: Server, **options: Any) -> requests.Response:
    return requests.post(f"{server.url}/process", timeout=60, **options)


def test_curl_as_in_the_readme_gets_its_addresses(server: Server, played_worker: PlayedWorker) -> None:
    reply = post(server, json=BODY)
    assert reply.status_code == 200
    assert reply.json()["id"] == 123
    form = post(server, data={"id": "a"}, files={"front": ("f.png", b"x" * 3_000_000)})
    assert (form.status_code, form.json()["id"]) == (200, "a")
    assert len(played_worker.taken) == 2


def test_waiting_requests_leave_the_other_routes_free(server: Server, played_worker: PlayedWorker) -> None:
    played_worker.hold()
    with ThreadPoolExecutor(12) as pool:
        replies = [pool.submit(post, server, json=BODY) for _ in range(12)]
        eventually(lambda: sum(reply.done() for reply in replies) == 8)
        assert {reply.result().status_code for reply in replies if reply.done()} == {202}
        assert requests.get(f"{server.url}/live", timeout=5).status_code == 200
        played_worker.release()
        assert sorted(reply.result(30).status_code for reply in replies) == [200] * 4 + [202] * 8


def test_requests_in_flight_are_answered_after_term(server: Server, played_worker: PlayedWorker, store: Store) -> None:
    played_worker.hold()
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(post, server, json=BODY) for _ in range(4)]
        eventually(lambda: server.waits() == 4)
        server.process.send_signal(signal.SIGTERM)
        # Not 200: the job may take longer than the server may take to stop, and goes on without it.
        assert [reply.result(30).status_code for reply in replies] == [202] * 4
    assert server.process.wait(30) == 0, server.log
    played_worker.release()
    for reply in replies:
        job_id = reply.result().headers["Location"].rpartition("/")[2]
        eventually(lambda job_id=job_id: store.status(job_id) == JobStatus.SUCCEEDED)  # type: ignore[misc]


def test_every_line_of_the_log_is_json_and_follows_the_request(server: Server, played_worker: PlayedWorker) -> None:
    job_id = post(server, json=BODY, headers={"X-Request-ID": "req-42"}).json()["job_id"]
    eventually(lambda: "request_done" in server.log)
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert played_worker.taken[0].request_id == "req-42"
    mine = {line["event"]: line for line in lines if line.get("request_id") == "req-42"}
    assert mine["job_accepted"]["job_id"] == job_id
    assert mine["request_done"]["status"] == 200


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /jobs?cursor=" + b"A" * 4094 + b" HTTP/1.1", 414),
        (b"GET /jobs HTTP/1.1\r\nX-Long: " + b"A" * 8190, 431),
        (b"GET /jobs", 400),
    ],
)
def test_what_is_refused_before_our_code_has_the_status_that_the_readme_names(
    server: Server, request_head: bytes, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request_head + b"\r\nHost: x\r\n\r\n")
        answer = connection.makefile("rb").readline()
    assert answer.split()[1] == str(status).encode()
    text = (ROOT / "README.md").read_text().partition("### Error codes")[2].partition("| Code |")[0]
    assert f"({status})" in text
    assert server.is_live()


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=edge"])
def test_a_body_without_a_length_is_limited_too(settings: Settings, tmp_path: Path, content_type: str) -> None:
    server = Server(settings, tmp_path / "api.log", UPLOAD_LIMIT_MB="1")
    part = b'--edge\r\nContent-Disposition: form-data; name="front"; filename="a"\r\n\r\n'
    head = part if "form" in content_type else b'"'
    try:
        eventually(server.is_live, 60)
        chunks = itertools.chain([head], itertools.repeat(b"x" * 100_000, 20))  # requests sends an iterator chunked
        try:
            reply = post(server, data=chunks, headers={"Content-Type": content_type})
            assert (reply.status_code, reply.json()["code"]) == (413, "request_too_large")
        except requests.ConnectionError:
            assert "request_too_large" in server.log  # the answer came while we were still sending
    finally:
        server.close()


POST = b"POST /process HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
UNFINISHED = {
    "headers": (POST, b""),
    "body": (POST + b"Content-Length: 500\r\n\r\n{", b"ended too early"),
    "chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{", b"ended too early"),
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_clients_that_stop_in_mid_request_are_given_up(settings: Settings, tmp_path: Path, kind: str) -> None:
    """Given more unfinished requests than web threads, when their time is over, then the others get their answers."""
    request, answer = UNFINISHED[kind]
    server = Server(
        settings, tmp_path / "api.log", API_THREADS="4", MAX_SYNC_WAITS="2", MAX_EVENT_STREAMS="1", UPLOAD_STALL_S="0.5"
    )
    try:
        eventually(server.is_live, 60)
        stalled = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        for connection in stalled:
            connection.sendall(request)
        assert server.is_live()
        for connection in stalled:
            connection.settimeout(20)
            reply = b"".join(iter(lambda c=connection: c.recv(4096), b""))  # type: ignore[misc]
            connection.close()
            assert answer in reply
            assert reply.startswith(b"HTTP/1.1 400 ") or not answer
        assert "Traceback" not in server.log
    finally:
        server.close()


def test_the_api_starts_without_redis_and_is_ready_when_it_comes(settings: Settings, tmp_path: Path) -> None:
    redis_server = RedisServer()
    server = Server(settings, tmp_path / "api.log", REDIS_URL=redis_server.url)
    try:
        eventually(server.is_live, 60)
        assert post(server, json=BODY).json()["code"] == "redis_unavailable"
        redis_server.start()
        assert post(server, json=BODY, params={"wait": "false"}).status_code == 202
    finally:
        server.close()
        redis_server.close()


def test_wrong_settings_stop_the_start_with_a_sentence(settings: Settings, tmp_path: Path) -> None:
    server = Server(
        settings, tmp_path / "api.log", API_THREADS="8", MAX_SYNC_WAITS="7", MAX_EVENT_STREAMS="1", LOG_LEVEL="LOUD"
    )
    assert server.process.wait(60) != 0
    assert "with MAX_EVENT_STREAMS=1 make it less than API_THREADS=8" in server.log
    assert "LOG_LEVEL" in server.log
    assert "Traceback" not in server.log
