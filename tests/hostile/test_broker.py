"""Messages that the API never sent, on the real queue of a real worker: refused, gone, and the worker goes on."""

import base64
import json
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from shared.jobs import JobStatus, Source, new_job, new_job_id
from shared.messages import CELL, PLAN, QUEUE, make_celery, send_plan
from shared.settings import load_settings
from shared.storage import FolderStorage
from shared.store import Store
from tests.hostile.building import quarters, saved
from tests.processes import Process, python, wait_for
from tests.redis_server import RedisServer


class Touch:
    """Unpickled, it leaves a file: what an attacker's message would do with a shell."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


class Queue:
    """The worker's queue as someone with Redis' password sees it."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        settings = load_settings(redis_url=server.url, outputs_dir=folder / "outputs", base_url="http://x.test")
        self.redis = redis.Redis(port=server.port)
        self.redis.flushall()  # ours alone: the server listens on a port that this run chose
        self.store = Store.from_settings(settings)
        self.storage = FolderStorage(settings.outputs_dir, settings.base_url)
        self.marker = folder / "was-here"
        self._celery = make_celery(settings, "test")
        env = {"REDIS_URL": server.url, "OUTPUTS_DIR": str(settings.outputs_dir), "BASE_URL": settings.base_url}
        self.worker: Process = python("worker", "-m", "tests.tiny_worker", env=env, log_dir=folder / "logs")
        wait_for("the worker", lambda: any(w["status"] == "ready" for w in self.store.workers()), self.worker)

    def send(self, body: bytes, content_type: str, task: str = PLAN, encoding: str = "binary") -> None:
        """Put a message on the queue, in the envelope that Celery and kombu use."""
        number = str(uuid.uuid4())
        headers = {"lang": "py", "task": task, "id": number, "root_id": number, "parent_id": None, "group": None,
                   "argsrepr": "()", "kwargsrepr": "{}", "origin": "elsewhere", "ignore_result": True}  # fmt: skip
        properties = {"correlation_id": number, "delivery_mode": 2, "delivery_tag": number, "priority": 0,
                      "delivery_info": {"exchange": "", "routing_key": QUEUE}, "body_encoding": "base64"}  # fmt: skip
        message = {"body": base64.b64encode(body).decode(), "content-encoding": encoding,
                   "content-type": content_type, "headers": headers, "properties": properties}  # fmt: skip
        self.redis.lpush(QUEUE, json.dumps(message))

    def do_a_job(self) -> JobStatus | None:
        """Send a good job the usual way and wait for its end."""
        job_id = new_job_id()
        path = self.storage.write_work(job_id, "front.upload", saved(quarters(), "PNG"))
        job = new_job(job_id=job_id, client_id=1, sources={"front": Source(kind="file", path=path)}, models=("rmbg",))
        self.store.create(job)
        send_plan(self._celery, job_id, "req-1")
        return wait_for("the job", lambda: self._ended(job_id), self.worker)

    def _ended(self, job_id: str) -> JobStatus | None:
        job = self.store.get(job_id)
        return job.status if job.is_final else None

    def is_clean(self) -> bool:
        """Whether no message is queued or unacknowledged."""
        unacknowledged = sum(self.redis.hlen(key) for key in self.redis.keys("unacked:*"))
        return self.redis.llen(QUEUE) == 0 and unacknowledged == 0

    def close(self) -> None:
        self.worker.kill()
        self._celery.close()
        self.store.close()
        self.redis.close()


@pytest.fixture(scope="module")
def queue(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    queue = Queue(redis_server, tmp_path_factory.mktemp("broker"))
    yield queue
    queue.close()


def assert_harmless(queue: Queue) -> None:
    pid = queue.worker.popen.pid
    assert queue.do_a_job() == JobStatus.SUCCEEDED
    wait_for("an empty queue", queue.is_clean, queue.worker)
    assert not queue.marker.exists(), "the message was executed"
    assert (queue.worker.popen.poll(), queue.worker.popen.pid) == (None, pid)


def test_a_pickled_message_is_refused(queue: Queue) -> None:
    """Given a pickle that leaves a file when it is read, when it is on the queue, then no file appears."""
    payload = pickle.dumps(((Touch(queue.marker),), {}, {"callbacks": None}))
    queue.send(payload, "application/x-python-serialize")
    assert_harmless(queue)
    assert "ContentDisallowed" in queue.worker.log or "disallowed" in queue.worker.log
    pickle.loads(payload)  # the payload is a real one: read here, it does what it says
    assert queue.marker.exists()
    queue.marker.unlink()


def test_a_yaml_message_is_refused(queue: Queue) -> None:
    attack = f"!!python/object/apply:os.mknod ['{queue.marker}']"
    before = queue.worker.log.count("application/x-yaml")
    queue.send(attack.encode(), "application/x-yaml", encoding="utf-8")
    assert_harmless(queue)
    assert queue.worker.log.count("application/x-yaml") > before
    yaml.unsafe_load(attack)
    assert queue.marker.exists()
    queue.marker.unlink()


@pytest.mark.parametrize("content_type", ["application/x-msgpack", "text/plain", "application/x-unheard-of", ""])
def test_other_kinds_of_content_are_refused(queue: Queue, content_type: str) -> None:
    queue.send(b"\x93\x90\x80\x80", content_type)
    assert_harmless(queue)


BODIES: dict[str, tuple[bytes, str]] = {
    "not-json": (b"[[], {}, ", PLAN),
    "no-arguments": (b"[[], {}, {}]", PLAN),
    "too-many-arguments": (b'[[1, 2, 3, 4, 5], {"job_id": 5}, {}]', PLAN),
    "arguments-of-other-types": (b'[[], {"job_id": {"a": 1}, "request_id": []}, {}]', PLAN),
    "a-job-id-that-climbs": (b'[[], {"job_id": "../../etc/passwd", "request_id": "r"}, {}]', PLAN),
    "a-job-that-never-was": (b'[[], {"job_id": "00000000", "request_id": "r"}, {}]', PLAN),
    "a-cell-that-never-was": (
        b'[[], {"job_id": "../x", "request_id": "r", "side": "../../x", "model": "/etc"}, {}]', CELL,
    ),
    "a-task-that-never-was": (b"[[], {}, {}]", "os.system"),
    "one-mb-of-brackets": (b"[" * 1_000_000, PLAN),
    "no-list": (b'{"a": 1}', PLAN),
    "null": (b"null", PLAN),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_json_that_is_no_task_of_ours_is_harmless(queue: Queue, name: str) -> None:
    body, task = BODIES[name]
    queue.send(body, "application/json", task, encoding="utf-8")
    assert_harmless(queue)


@pytest.mark.parametrize("kind", ["not an envelope", "{}", "[1, 2]", "null", '{"body": 5, "properties": {}}'])
def test_what_is_no_message_at_all_is_harmless(queue: Queue, kind: str) -> None:
    queue.redis.lpush(QUEUE, kind)
    assert_harmless(queue)
