"""Idempotency-Key on POST /process, on a real Redis."""

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api import accepting, parsing
from api.app import create_app
from api.parsing import parse_request
from api.schemas import ProcessRequest
from shared.errors import StoreUnavailable
from shared.jobs import new_job_id
from shared.settings import Settings
from shared.store import Store
from shared.store.claims import CLAIM_TTL_S
from tests.conftest import PlayedWorker, assert_problem, eventually
from tests.redis_server import RedisServer

URL = "https://example.com/front.png"
BODY = {"id": 123, "output": {"front": URL}}


def send(client: FlaskClient, body: dict[str, Any] = BODY, key: str = "order-1", **headers: str) -> TestResponse:
    return client.post("/process", json=body, headers={"Idempotency-Key": key, "Prefer": "respond-async", **headers})


def job_id(reply: TestResponse) -> str:
    assert reply.status_code in (200, 202), reply.text
    return str((reply.json or {})["job_id"])


def test_the_same_request_again_is_the_same_job(client: FlaskClient, store: Store) -> None:
    first, again = send(client), send(client)
    assert job_id(first) == job_id(again)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert store.queue_depth() == 1
    assert job_id(send(client, key="order-2")) != job_id(first)


def test_a_replay_waits_for_the_running_job_like_any_request(client: FlaskClient, played_worker: PlayedWorker) -> None:
    first = send(client)
    again = send(client, Prefer="wait=30")
    assert (again.status_code, job_id(again)) == (200, job_id(first))
    assert len(played_worker.taken) == 1
    once_more = send(client, Prefer="wait=30")
    assert (once_more.status_code, once_more.json) == (200, again.json)


def test_fifty_requests_at_the_same_instant_make_one_job(settings: Settings, played_worker: PlayedWorker) -> None:
    app = create_app(settings)
    barrier = threading.Barrier(50)

    def send_at_once(_: int) -> TestResponse:
        client = app.test_client()
        barrier.wait(20)
        return client.post("/process", json=BODY, headers={"Idempotency-Key": "order-1"})

    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(send_at_once, range(50)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({job_id(reply) for reply in replies}) == 1
    assert len(played_worker.taken) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in replies) == 1


def upload(data: bytes, name: str = "front.png") -> dict[str, Any]:
    return {"id": "123", "front": (io.BytesIO(data), name)}


@pytest.mark.parametrize(
    "changed",
    [
        {**BODY, "id": 124},
        {**BODY, "id": "123"},
        {"id": 123, "output": {"front": URL + "?v=2"}},
        {"id": 123, "output": {"back": URL}},
        {**BODY, "options": {"edges": "raw"}},
    ],
)
def test_another_request_with_the_same_key_is_refused(
    client: FlaskClient, store: Store, changed: dict[str, Any]
) -> None:
    send(client)
    assert_problem(send(client, changed), 422, "idempotency_key_reused")
    assert store.queue_depth() == 1


def test_options_that_say_what_holds_anyway_are_no_other_request(client: FlaskClient) -> None:
    assert job_id(send(client)) == job_id(send(client, {**BODY, "options": {"edges": "clean", "proofs": False}}))


def test_an_upload_is_its_bytes_however_it_came(client: FlaskClient, settings: Settings) -> None:
    headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
    first = client.post("/process", data=upload(b"picture"), headers=headers)
    renamed = client.post("/process", data=upload(b"picture", "other.png"), headers=headers)
    uri = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    as_json = send(client, {"id": 123, "output": {"front": uri}}, key="k")
    assert job_id(first) == job_id(renamed) == job_id(as_json)
    other = client.post("/process", data=upload(b"pictures"), headers=headers)
    assert_problem(other, 422, "idempotency_key_reused")
    # The one that made the job has stored its picture whole, after it was hashed.
    assert [path.read_bytes() for path in settings.outputs_dir.rglob("*.upload")] == [b"picture"]


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
def test_a_key_that_is_none_is_refused(client: FlaskClient, store: Store, key: str) -> None:
    assert "Idempotency-Key" in assert_problem(send(client, key=key), 422, "invalid_request")["detail"]
    assert store.queue_depth() == 0


def test_a_key_lives_as_long_as_its_jobs_record(
    client: FlaskClient, store: Store, settings: Settings, redis_server: RedisServer
) -> None:
    first = job_id(send(client))
    with redis.Redis(port=redis_server.port, decode_responses=True) as connection:
        (key,) = connection.keys("idempotency:*")
        connection.expire(key, 100)
        store.cancel(first)  # each change of the job renews both
        assert settings.job_ttl_s - 60 < connection.ttl(key) <= settings.job_ttl_s
        connection.delete(f"job:{first}")  # as its lifetime does
    assert job_id(send(client)) != first


def test_a_deleted_job_frees_its_key(client: FlaskClient, redis_server: RedisServer) -> None:
    first = job_id(send(client))
    client.delete(f"/jobs/{first}")
    with redis.Redis(port=redis_server.port) as connection:
        assert connection.keys("idempotency:*") == []
    assert job_id(send(client)) != first


def test_a_request_that_fails_frees_its_key(
    client: FlaskClient, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreUnavailable("the queue is away")

    with monkeypatch.context() as patch:
        patch.setattr(accepting, "send_plan", refuse)
        assert_problem(send(client), 503, "redis_unavailable")
    with redis.Redis(port=redis_server.port) as connection:
        assert connection.keys("*") == []
    assert job_id(send(client))


def test_a_request_that_is_refused_frees_its_key_at_once(settings: Settings, redis_server: RedisServer) -> None:
    client = create_app(settings.model_copy(update={"max_queued_jobs": 1})).test_client()
    other = job_id(send(client, key="other"))
    assert_problem(send(client), 503, "queue_full")
    with redis.Redis(port=redis_server.port) as connection:
        assert len(connection.keys("idempotency:*")) == 1
    client.post(f"/jobs/{other}/cancel")
    assert "Idempotent-Replayed" not in send(client).headers


def test_a_claim_of_a_request_that_died_holds_others_up_only_for_its_short_life(
    app: Flask, store: Store, redis_server: RedisServer
) -> None:
    """Given a process that claimed a key and died, when its claim runs out, then the waiting request makes the job."""
    asked = accepting.digest_of(_parsed(app))
    dead = store.claims.take("", "order-1", asked, new_job_id())
    with redis.Redis(port=redis_server.port) as connection, ThreadPoolExecutor(1) as pool:
        assert 0 < connection.ttl(dead.key) <= CLAIM_TTL_S
        waiting = pool.submit(send, app.test_client())
        eventually(lambda: connection.info("clients")["blocked_clients"] == 1)
        connection.delete(dead.key)  # as its lifetime does
        made = job_id(waiting.result(20))
    assert made != dead.job_id
    assert store.queue_depth() == 1


def test_a_request_whose_claim_ran_out_makes_no_second_job(
    app: Flask, client: FlaskClient, store: Store, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a writer so slow that its claim ran out and another made the job, then it answers with that job."""
    real = parsing.store_sources
    others: list[str] = []

    def slow(*arguments: Any) -> Any:
        if not others:
            others.append("")  # only the first request is slow
            with redis.Redis(port=redis_server.port, decode_responses=True) as connection:
                connection.delete(*connection.keys("idempotency:*"))
            others[0] = job_id(send(app.test_client()))
        return real(*arguments)

    monkeypatch.setattr(accepting, "store_sources", slow)
    assert job_id(send(client)) == others[0]
    assert store.queue_depth() == 1


def test_every_caller_has_keys_of_their_own(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("shop", "print", "shop"):
        monkeypatch.setattr(accepting, "caller", lambda name=name: name)
        made.append(job_id(send(client)))
    assert made[0] == made[2] != made[1]


def _parsed(app: Flask) -> ProcessRequest:
    with app.test_request_context("/process", method="POST", json=BODY) as context:
        return parse_request(context.request)


def test_a_job_whose_answer_from_redis_was_lost_is_found_by_its_key_with_its_pictures(
    app: Flask, client: FlaskClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a record that was written, and a client that was told 503, then its next try is that very job."""
    service = app.extensions["service"]

    def create(*arguments: Any) -> None:
        real(*arguments)
        raise StoreUnavailable("Redis went away before it could answer")

    def post() -> TestResponse:
        form = {"id": "7", "front": (io.BytesIO(b"a picture"), "a.png")}
        return client.post("/process?wait=false", data=form, headers={"Idempotency-Key": "k"})

    real = service.store.create
    with monkeypatch.context() as patch:
        patch.setattr(service.store, "create", create)
        assert_problem(post(), 503, "redis_unavailable")
    again = post()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert store.queue_depth() == 1
    assert service.storage.work_files(job_id(again)) == ["front.upload"]


def test_a_job_whose_message_and_removal_both_failed_is_accepted(
    app: Flask, client: FlaskClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a record that can neither be followed by its message nor be taken back, then a worker will miss that."""

    def fail(*_: object) -> None:
        raise StoreUnavailable("Redis is away")

    monkeypatch.setattr(accepting, "send_plan", fail)
    monkeypatch.setattr(app.extensions["service"].store, "delete", fail)
    assert store.status(job_id(send(client))) == "queued"
