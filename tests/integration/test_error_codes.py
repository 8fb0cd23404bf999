"""Every code of the README's table, met as a client meets it: over HTTP, from real processes.

`PROVOKED` has one way for each code to come. A code without one fails, and so does one that comes with another status,
title or content type than the document says.
"""

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from api.error_reference import WHEN
from api.keys import new_key
from shared.settings import load_settings
from shared.storage import output_name
from tests import gemini_server
from tests.gemini_server import KEY, GeminiServer, Reply
from tests.hostile.stack import Stack
from tests.integration.test_worker import picture
from tests.picture_files import bomb_png
from tests.processes import wait_for
from tests.redis_server import RedisServer, free_port

API_KEY, ENTRY = new_key("ours")
GREEDY_KEY, GREEDY_ENTRY = new_key("greedy")
CALLS_PER_MINUTE = 12
NO_JOB = "0" * 32


class World:
    """What the provocations work on.

    Attributes:
        open: a service without keys, with small limits and a Gemini, which is `remote`.
        closed: one with keys, rate limits, signed URLs, a queue of one and no Gemini.
        servers: their Redis servers.
    """

    def __init__(self, folder: Path, servers: list[RedisServer], remote: GeminiServer) -> None:
        self.remote, self.servers, self._pictures = remote, servers, 0
        self.gate = folder / "gate"
        self.gate.mkdir()
        both = {"TINY_GATE": str(self.gate), "ALLOW_PRIVATE_SOURCES": "127.0.0.1"}
        own = (
            {
                "MAX_EVENT_STREAMS": "1",
                "UPLOAD_LIMIT_MB": "1",
                "MAX_BATCH": "1",
                "MAX_DEVICE_QUEUE": "1",
                "DOWNLOAD_TIMEOUT_S": "1",
                "EXTRACT_DESIGN": "never",
                "EXTRACT_ON_ERROR": "fail",
                "GEMINI_API_KEY": KEY,
                "GEMINI_BASE_URL": remote.url,
                "GEMINI_TRIES": "1",
                "GEMINI_TIMEOUT_S": "2",
                "GEMINI_CALLS_PER_MINUTE": str(CALLS_PER_MINUTE),
            },
            {
                "API_KEYS": f"{ENTRY},{GREEDY_ENTRY}",
                "RATE_LIMIT": "40/minute",
                "OUTPUT_URL_TTL": "1",
                "OUTPUT_URL_SECRET": "0123456789abcdef" * 2,
                "MAX_QUEUED_JOBS": "1",
            },
        )
        self.open, self.closed = (
            Stack(
                load_settings(redis_url=server.url, outputs_dir=folder / name / "outputs"), folder / name, **both, **env
            )
            for name, server, env in zip(("open", "closed"), servers, own, strict=True)
        )

    def send(self, path: str = "/process", method: str = "POST", **request: Any) -> requests.Response:
        return requests.request(method, self.open.url + path, timeout=90, **request)

    def picture(self) -> bytes:
        """One that no test has sent before, so that no cell is taken from the cache."""
        self._pictures += 1
        return picture(9000 + self._pictures)

    def job(
        self, data: bytes | str | None = None, options: dict[str, Any] | None = None, **headers: str
    ) -> requests.Response:
        """A job of one cell, waited for unless a header says otherwise; `data` may be a URL."""
        form = {"id": "7", "options": json.dumps({"models": ["rmbg"], **(options or {})})}
        side = self.picture() if data is None else data
        files = {"front": (None if isinstance(side, str) else "front.png", side)}
        return self.send(data=form, files=files, headers={k.replace("_", "-"): value for k, value in headers.items()})

    def job_id(self, side: bytes | None = None, options: dict[str, Any] | None = None, **headers: str) -> str:
        """A job that is not waited for."""
        return str(self.job(side, options, Prefer="respond-async", **headers).json()["job_id"])

    @contextmanager
    def told(self, word: str) -> Iterator[Path]:
        """While forward passes of `rmbg` do what tests/tiny_worker.py says about the word."""
        path = self.gate / f"{word}-rmbg"
        path.touch()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def ask_gemini(self, *replies: Reply) -> requests.Response:
        self.remote.will(*replies)
        return self.job(options={"extract": "always"})

    def closed_job(self, **headers: str) -> requests.Response:
        headers = {"X-API-Key": API_KEY, **headers}
        return self.closed.post(headers=headers, data={"id": "7"}, files={"front": ("front.png", picture(1))})

    def staffed(self, stack: Stack) -> Stack:
        """A service whose worker runs, whatever an earlier way has done to it."""
        if stack.worker.popen.poll() is not None:
            stack.worker = stack.start_worker()
            stack.wait_until_ready()
        return stack

    def close(self) -> None:
        for stack in (self.open, self.closed):
            stack.worker.kill()
            stack.api.kill()
            stack.store.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("codes")
    with RedisServer() as first, RedisServer() as second, GeminiServer() as remote:
        world = World(folder, [first, second], remote)
        try:
            for stack in (world.open, world.closed):
                stack.wait_until_ready()
            yield world
        finally:
            world.close()


# --- ways that take more than one request -----------------------------------------------------------------------------


def job_already_final(world: World) -> requests.Response:
    return world.send(f"/jobs/{world.job().json()['job_id']}/cancel")


def job_still_open(world: World) -> requests.Response:
    with world.told("hold"):
        return world.send(f"/jobs/{world.job_id()}/retry")


def nothing_to_retry(world: World) -> requests.Response:
    return world.send(f"/jobs/{world.job().json()['job_id']}/retry")


def job_canceled(world: World) -> requests.Response:
    side = world.picture()
    with world.told("hold"):
        world.send(f"/jobs/{world.job_id(side, Idempotency_Key='canceled')}/cancel")
    return world.job(side, Idempotency_Key="canceled")


def job_expired(world: World) -> requests.Response:
    with world.told("hold"):
        return world.job(Cancel_After="1s")


def source_expired(world: World) -> requests.Response:
    with world.told("break"):
        job_id = world.job().json()["job_id"]
    for path in (world.open.settings.outputs_dir / ".work" / job_id).glob("front.*"):
        path.unlink()  # as the sweeper does after SOURCE_TTL_S
    return world.send(f"/jobs/{job_id}/retry")


def output_expired(world: World) -> requests.Response:
    url = world.job().json()["front_rmbg"]
    (world.open.settings.outputs_dir / url.rpartition("/")[2]).unlink()
    return requests.get(url, timeout=60)


def idempotency_key_reused(world: World) -> requests.Response:
    world.job(Idempotency_Key="reused")
    return world.job(Idempotency_Key="reused")  # with another picture


def source_timeout(world: World) -> requests.Response:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        return world.job(f"http://127.0.0.1:{silent.getsockname()[1]}/front.png")


def output_not_written(world: World) -> requests.Response:
    """Something lies where the file must go."""
    side = world.picture()
    with world.told("hold"):
        job_id = world.job_id(side, Idempotency_Key="unwritten")
        (world.open.settings.outputs_dir / output_name(7, job_id, "front", "rmbg")).mkdir()
    return world.job(side, Idempotency_Key="unwritten")


def device_queue_full(world: World) -> requests.Response:
    """One on the device and one that waits; the others are refused while those are held."""
    with ThreadPoolExecutor(4) as pool, world.told("hold") as gate:
        jobs = [pool.submit(world.job) for _ in range(4)]
        first = next(as_completed(jobs)).result()
        gate.unlink()
    return first


def device_failed(world: World) -> requests.Response:
    """The worker ends; the next one is started here, as a supervisor would."""
    with world.told("kill"):
        reply = world.job()
    wait_for("the worker's end", lambda: world.open.worker.popen.poll() is not None)
    world.open.worker = world.open.start_worker()
    return reply


def worker_crashed(world: World) -> requests.Response:
    """What workers leave that were killed by a job (tests/chaos/test_poison.py has such a picture)."""
    world.open.worker.terminate()
    side = world.picture()
    job_id = world.job_id(side, Idempotency_Key="poison")
    for _ in range(world.open.settings.max_deliveries):
        world.open.store.under_way.begin("dead", job_id, is_alone=True)
        world.open.store.under_way.count_crash("dead")
    world.open.worker = world.open.start_worker()
    return world.job(side, Idempotency_Key="poison")


def too_many_event_streams(world: World) -> requests.Response:
    with world.told("hold"):
        path = f"/jobs/{world.job_id()}/events"
        with world.send(path, "GET", stream=True):
            return world.send(path, "GET")


def extraction_busy(world: World) -> requests.Response:
    reply = world.ask_gemini(gemini_server.picture())
    for _ in range(CALLS_PER_MINUTE):
        if reply.status_code != 200:
            break
        reply = world.ask_gemini(gemini_server.picture())
    with redis.Redis.from_url(world.open.settings.redis_url.get_secret_value()) as connection:
        connection.delete("extraction:calls")  # as a minute does
    return reply


def extraction_interrupted(world: World) -> requests.Response:
    """What workers leave that were killed in mid-call, twice (tests/integration/test_extraction.py kills them)."""
    world.open.worker.terminate()
    side, options = world.picture(), {"extract": "always"}
    job_id = world.job_id(side, options, Idempotency_Key="interrupted")
    (world.open.settings.outputs_dir / ".work" / job_id / "front-begun.txt").write_text("2")
    world.open.worker = world.open.start_worker()
    return world.job(side, options, Idempotency_Key="interrupted")


def output_url_invalid(world: World) -> requests.Response:
    world.staffed(world.closed)
    url = world.closed_job().json()["front_rmbg"]
    return requests.get(url[:-1] + ("A" if url[-1] != "A" else "B"), timeout=60)


def output_url_expired(world: World) -> requests.Response:
    world.staffed(world.closed)
    url = world.closed_job().json()["front_rmbg"]
    wait_for("the URL's end", lambda: requests.get(url, timeout=60).status_code != 200)
    return requests.get(url, timeout=60)


def rate_limited(world: World) -> requests.Response:
    for _ in range(100):
        reply = world.closed.get("/jobs", headers={"Authorization": f"Bearer {GREEDY_KEY}"})
        if reply.status_code != 200:
            break
    return reply


def extraction_not_configured(world: World) -> requests.Response:
    body = {"id": 7, "output": {"front": "https://example.com/a.png"}, "options": {"extract": "always"}}
    return world.staffed(world.closed).post(headers={"X-API-Key": API_KEY}, json=body)


def models_not_ready(world: World) -> requests.Response:
    world.closed.worker.terminate()
    return world.closed.get("/ready")


def queue_full(world: World) -> requests.Response:
    world.closed.worker.terminate()
    replies = [world.closed_job(Prefer="respond-async") for _ in range(2)]
    return replies[-1]


def redis_unavailable(world: World) -> requests.Response:
    server = world.servers[1]
    server.stop()
    try:
        return world.closed_job()
    finally:
        server.start()


def told(word: str) -> Callable[[World], requests.Response]:
    """A job whose forward pass does what tests/tiny_worker.py says about the word."""

    def provoke(world: World) -> requests.Response:
        with world.told(word):
            return world.job()

    return provoke


def gemini(reply: Reply) -> Callable[[World], requests.Response]:
    """A job whose design Gemini answers so."""
    return lambda world: world.ask_gemini(reply)


def google(status: int, name: str) -> Callable[[World], requests.Response]:
    return gemini(gemini_server.problem(status, name, "as the test says"))


PROVOKED: dict[str, Callable[[World], requests.Response]] = {
    "invalid_json": lambda world: world.send(data="{", headers={"Content-Type": "application/json"}),
    "unauthorized": lambda world: world.closed_job(**{"X-API-Key": "wrong"}),
    "output_url_invalid": output_url_invalid,
    "not_found": lambda world: world.send("/nothing", "GET"),
    "job_not_found": lambda world: world.send(f"/jobs/{NO_JOB}", "GET"),
    "output_not_found": lambda world: world.send(f"/outputs/{output_name(7, NO_JOB, 'front', 'rmbg')}", "GET"),
    "output_expired": output_expired,
    "source_expired": source_expired,
    "job_already_final": job_already_final,
    "job_still_open": job_still_open,
    "nothing_to_retry": nothing_to_retry,
    "job_canceled": job_canceled,
    "output_url_expired": output_url_expired,
    "method_not_allowed": lambda world: world.send("/process", "GET"),
    "requested_range_not_satisfiable": lambda world: world.send("/docs", "GET", headers={"Range": "bytes=999999-"}),
    "request_too_large": lambda world: world.job(bytes(1_100_000)),
    "unsupported_media_type": lambda world: world.send(data="<a/>", headers={"Content-Type": "text/xml"}),
    "invalid_request": lambda world: world.job(options={"colour": "red"}),
    "idempotency_key_reused": idempotency_key_reused,
    "output_too_large": lambda world: world.job(
        picture(1, 2200, 2200), {"print": {"canvas": "trim", "margin_px": 3000}}
    ),
    "source_unreachable": lambda world: world.job(f"http://127.0.0.1:{free_port()}/front.png"),
    "source_timeout": source_timeout,
    "source_too_large": lambda world: world.job(bomb_png()),
    "source_not_an_image": lambda world: world.job(b"not a picture"),
    "source_address_forbidden": lambda world: world.job("http://10.0.0.1/front.png"),
    "rate_limited": rate_limited,
    "inference_failed": told("break"),
    "out_of_device_memory": told("exhaust"),
    "output_not_written": output_not_written,
    "worker_crashed": worker_crashed,
    "device_queue_full": device_queue_full,
    "device_failed": device_failed,
    "internal_error": told("trip"),
    "extraction_not_configured": extraction_not_configured,
    "extraction_blocked": gemini(gemini_server.prompt_blocked("PROHIBITED_CONTENT")),
    "extraction_rejected": google(400, "INVALID_ARGUMENT"),
    "extraction_unauthorized": google(403, "PERMISSION_DENIED"),
    "extraction_model_not_found": google(404, "NOT_FOUND"),
    "extraction_empty": gemini(gemini_server.words("I cannot draw that.")),
    "extraction_bad_answer": gemini(gemini_server.raw(b"nonsense")),
    "extraction_unavailable": google(503, "UNAVAILABLE"),
    "extraction_quota": gemini(gemini_server.quota("60s")),
    "extraction_busy": extraction_busy,
    "extraction_interrupted": extraction_interrupted,
    "extraction_timeout": gemini(gemini_server.silence()),
    "models_not_ready": models_not_ready,
    "redis_unavailable": redis_unavailable,
    "queue_full": queue_full,
    "too_many_event_streams": too_many_event_streams,
    "job_expired": job_expired,
}


@pytest.fixture(scope="module")
def documented(world: World) -> dict[str, dict[str, Any]]:
    """The service's own table: code -> status, title, retryable."""
    return {entry["code"]: entry for entry in world.open.get("/openapi.json").json()["x-error-codes"]}


@pytest.mark.parametrize("code", WHEN)
def test_every_code_of_the_table_comes_as_the_table_says(
    world: World, documented: dict[str, dict[str, Any]], code: str
) -> None:
    reply = PROVOKED[code](world)
    assert reply.headers["Content-Type"] == "application/problem+json", reply.text
    body, entry = reply.json(), documented[code]
    assert (body["code"], reply.status_code, body["status"], body["title"]) == (
        code, entry["status"], entry["status"], entry["title"],
    ), reply.text  # fmt: skip
    assert body["type"] == f"/docs#{code}"
    assert body["detail"]
    assert body["request_id"] == reply.headers["X-Request-ID"]
    assert ("Retry-After" in reply.headers) is (reply.status_code in (429, 503))
    errors = [cell["error"] for cell in body.get("cells", {}).values()]
    assert [(error["code"], error["retryable"]) for error in errors] == [(code, entry["retryable"])] * len(errors)


def test_no_way_is_left_over() -> None:
    assert PROVOKED.keys() == WHEN.keys()
