"""POST /process and GET /jobs, with a real Redis; the worker is played by a thread that takes the real message."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from flask.testing import FlaskClient
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from api.app import create_app
from shared.errors import StoreUnavailable
from shared.jobs import ExtractionReport, Job, JobStatus, TokenUse
from shared.settings import Settings, load_settings
from shared.store import EXTRACTION_MARK, Store
from tests.conftest import PlayedWorker, assert_problem, eventually, succeed
from tests.redis_server import RedisServer, free_port

URL = "https://example.com/front.png"
BODY = {"id": 123, "output": {"front": URL, "back": "https://example.com/back.png"}}
CELLS = ["front_rmbg", "front_birefnet", "back_rmbg", "back_birefnet"]
ASYNC = {"Prefer": "respond-async"}


def upload(data: bytes = b"picture", name: str = "front.png") -> tuple[io.BytesIO, str]:
    return io.BytesIO(data), name


def send_form(client: FlaskClient, form: dict[str, Any], **headers: str) -> TestResponse:
    """Post a large form; encoded here, because werkzeug's test client forgets to close its temporary file."""
    files = {name: FileStorage(*value) if isinstance(value, tuple) else value for name, value in form.items()}
    boundary, body = encode_multipart(files)
    return client.post("/process", data=body, content_type=f"multipart/form-data; boundary={boundary}", headers=headers)


def work_files(settings: Settings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in settings.outputs_dir.rglob("*") if path.is_file()}


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("played_worker")
def test_the_reply_has_the_promised_keys_and_more(client: FlaskClient) -> None:
    reply = client.post("/process", json=BODY)
    assert reply.status_code == 200
    body = reply.json
    assert body is not None
    assert list(body) == ["id", *CELLS, "processing_time_seconds", "job_id", "status", "cells", "timings"]
    assert body["id"] == 123
    assert body["front_rmbg"] == f"http://service.test/outputs/design_123_{body['job_id']}_front_rmbg.png"
    assert "Preference-Applied" not in reply.headers


@pytest.mark.usefixtures("played_worker")
@pytest.mark.parametrize("client_id", [5, "5", "shirt_A-1"])
def test_the_clients_id_comes_back_with_its_type(client: FlaskClient, client_id: int | str) -> None:
    body = client.post("/process", json={**BODY, "id": client_id}).json
    assert body is not None
    assert (body["id"], type(body["id"])) == (client_id, type(client_id))


def test_a_failed_cell_makes_the_job_partial_and_is_null_in_the_reply(
    client: FlaskClient, played_worker: PlayedWorker
) -> None:
    played_worker.outcome = lambda store, job: succeed(store, job, failed=("back_rmbg",))
    reply = client.post("/process", json=BODY)
    assert reply.status_code == 200
    assert reply.json is not None
    assert reply.json["status"] == "partial"
    assert reply.json["back_rmbg"] is None
    assert reply.json["front_rmbg"]
    assert reply.json["cells"]["back_rmbg"]["error"]["code"] == "inference_failed"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (
            {"code": "source_unreachable", "detail": "404 from example.com", "retryable": True},
            422,
            "source_unreachable",
        ),
        ({"code": "out_of_device_memory", "detail": "full", "retryable": True}, 500, "out_of_device_memory"),
        ({"code": "never_heard_of", "detail": "?", "retryable": True}, 500, "internal_error"),
        (None, 500, "internal_error"),
    ],
)
def test_a_job_without_any_cutout_is_answered_with_its_error(
    client: FlaskClient, played_worker: PlayedWorker, error: dict[str, Any] | None, status: int, code: str
) -> None:
    def fail(store: Store, job: Job) -> None:
        store.finish(job.job_id, JobStatus.FAILED, error=error)

    played_worker.outcome = fail
    body = assert_problem(client.post("/process", json=BODY), status, code)
    assert body["job_id"] == played_worker.taken[0].job_id
    assert list(body["cells"]) == CELLS
    if error:
        assert body["detail"] == error["detail"]


@pytest.mark.parametrize(
    ("query", "headers", "applied"),
    [("", ASYNC, "respond-async"), ("?wait=false", {}, None), ("?wait=0", {}, None),
     ("?wait=false", {"Prefer": "wait=60"}, None), ("", {"Prefer": "wait=0"}, "wait=0"),
     ("", {"Prefer": "wait=0, respond-async"}, "respond-async, wait=0")],
)  # fmt: skip
def test_a_client_that_does_not_want_to_wait_gets_202_and_a_place_to_ask(
    client: FlaskClient, query: str, headers: dict[str, str], applied: str | None
) -> None:
    reply = client.post(f"/process{query}", json=BODY, headers=headers)
    assert reply.status_code == 202
    assert reply.json is not None
    assert reply.headers["Location"] == f"/jobs/{reply.json['job_id']}"
    assert reply.headers.get("Preference-Applied") == applied
    assert reply.json["status"] == "queued"
    assert reply.json["queue_position"] == 1
    assert client.get(reply.headers["Location"]).json == reply.json


def test_when_the_wait_runs_out_the_job_goes_on(client: FlaskClient, played_worker: PlayedWorker) -> None:
    played_worker.hold()
    reply = client.post("/process", json=BODY, headers={"Prefer": "wait=1"})
    assert reply.status_code == 202
    assert reply.headers["Preference-Applied"] == "wait=1"
    played_worker.release()
    eventually(lambda: (client.get(reply.headers["Location"]).json or {})["status"] == "succeeded")


def test_the_clients_wait_is_capped_and_the_cap_is_told(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"sync_wait_limit_s": 0.0}))
    reply = app.test_client().post("/process", json=BODY, headers={"Prefer": "wait=3600"})
    assert (reply.status_code, reply.headers["Preference-Applied"]) == (202, "wait=0")


@pytest.mark.usefixtures("played_worker")
def test_a_job_that_ends_within_the_asked_wait_is_answered_with_200(client: FlaskClient) -> None:
    reply = client.post("/process", json=BODY, headers={"Prefer": "respond-async, wait=30"})
    assert (reply.status_code, reply.headers["Preference-Applied"]) == (200, "wait=30")


def test_past_the_cap_of_waits_requests_get_202_at_once_and_other_routes_answer(
    settings: Settings, played_worker: PlayedWorker
) -> None:
    app = create_app(settings.model_copy(update={"max_sync_waits": 3}))
    waits = app.extensions["service"].metrics.waits
    played_worker.hold()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(app.test_client().post, "/process", json=BODY) for _ in range(3)]
        eventually(lambda: waits._value.get() == 3)
        refused = app.test_client().post("/process", json=BODY, headers={"Prefer": "wait=60"})
        assert refused.status_code == 202
        assert "Preference-Applied" not in refused.headers
        assert app.test_client().get("/live").status_code == 200
        played_worker.release()
        assert [future.result(30).status_code for future in waiting] == [200, 200, 200]
    # The permits were given back.
    assert app.test_client().post("/process", json=BODY).status_code == 200
    assert waits._value.get() == 0


def test_forty_waiting_clients_each_get_their_own_answer(settings: Settings, played_worker: PlayedWorker) -> None:
    app = create_app(settings.model_copy(update={"max_sync_waits": 40}))
    with ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(lambda n: app.test_client().post("/process", json={**BODY, "id": n}), range(40)))
    assert [(reply.status_code, (reply.json or {})["id"]) for reply in replies] == [(200, n) for n in range(40)]
    assert len({(reply.json or {})["job_id"] for reply in replies}) == 40
    assert len(played_worker.taken) == 40


def test_a_redis_that_dies_during_the_wait_does_not_lose_the_job_id(tmp_path: Path) -> None:
    with RedisServer() as server:
        app = create_app(load_settings(redis_url=server.url, outputs_dir=tmp_path))
        waits = app.extensions["service"].metrics.waits
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(app.test_client().post, "/process", json=BODY)
            eventually(lambda: waits._value.get() == 1)
            server.stop()
            reply = waiting.result(30)
    assert reply.status_code == 202
    assert reply.json is not None
    assert reply.json["queue_position"] is None


# --- what is queued ---------------------------------------------------------------------------------------------------


def test_the_record_has_what_the_worker_needs_and_the_message_only_ids(
    client: FlaskClient, store: Store, redis_server: RedisServer
) -> None:
    body = {**BODY, "options": {"models": ["birefnet"]}}
    reply = client.post("/process", json=body, headers={**ASYNC, "X-Request-ID": "req-7"})
    assert reply.json is not None
    job = store.get(reply.json["job_id"])
    assert job.request_id == reply.headers["X-Request-ID"] == "req-7"
    assert job.sources["front"].url == URL
    assert job.models == ("birefnet",)
    assert job.options == {"models": ["birefnet"]}
    assert list(job.cells) == ["front_birefnet", "back_birefnet"]
    with redis.Redis(port=redis_server.port) as connection:
        message = json.loads(connection.lindex("jobs", 0) or "")
    _, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert kwargs == {"job_id": job.job_id, "request_id": "req-7"}


def test_multipart_is_the_same_request_as_json(client: FlaskClient, store: Store, settings: Settings) -> None:
    form = {"id": "123", "front": upload(b"front picture"), "back": URL, "options": '{"models": ["rmbg"]}'}
    reply = client.post("/process", data=form, headers=ASYNC)
    assert reply.json is not None
    job = store.get(reply.json["job_id"])
    assert (job.id, type(job.id)) == (123, int)
    assert job.models == ("rmbg",)
    assert job.sources["back"].url == URL
    assert job.sources["front"].path == f".work/{job.job_id}/front.upload"
    assert (settings.outputs_dir / job.sources["front"].path).read_bytes() == b"front picture"


@pytest.mark.parametrize(
    ("text", "expected"), [("123", 123), ("-4", -4), ("007", "007"), ("a1", "a1"), ("9" * 30, "9" * 30)]
)
def test_an_id_in_a_form_is_an_integer_when_json_would_write_it_so(
    client: FlaskClient, text: str, expected: int | str
) -> None:
    reply = client.post("/process", data={"id": text, "front": upload()}, headers=ASYNC)
    assert reply.json is not None
    assert (reply.json["id"], type(reply.json["id"])) == (expected, type(expected))


def test_a_large_upload_arrives_whole_and_never_in_redis(
    client: FlaskClient, settings: Settings, redis_server: RedisServer
) -> None:
    data = bytes(range(256)) * 20_000  # 5 MB: several chunks, and more than fits the parser's memory buffer
    reply = send_form(client, {"id": "1", "back": upload(data)}, **ASYNC)
    assert reply.status_code == 202
    assert work_files(settings) == {"back.upload": data}
    with redis.Redis(port=redis_server.port) as connection:
        assert all((connection.memory_usage(key) or 0) < 20_000 for key in connection.scan_iter())


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        ("data:image/png;base64," + base64.b64encode(b"picture!").decode(), b"picture!"),
        ("data:;base64,cGljdHVyZSE", b"picture!"),
        ("data:image/png;base64,cGlj%0AdHVyZSE%3D", b"picture!"),
        ("data:image/svg+xml,%3Csvg/%3E", b"<svg/>"),
        ("data:image/png;base64," + base64.b64encode(bytes(3_000_001)).decode(), bytes(3_000_001)),
    ],
)
def test_a_data_uri_becomes_a_file(client: FlaskClient, settings: Settings, uri: str, data: bytes) -> None:
    reply = client.post("/process", json={"id": 1, "output": {"front": uri}}, headers=ASYNC)
    assert reply.status_code == 202
    assert work_files(settings) == {"front.upload": data}


# --- what is refused, leaving nothing behind --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code", "words"),
    [
        (b"{", "application/json", 400, "invalid_json", "not JSON"),
        (b"", "application/json", 400, "invalid_json", "not JSON"),
        (b'{"id": "\xff"}', "application/json", 400, "invalid_json", "not JSON"),
        (b"[" * 100_000, "application/json", 400, "invalid_json", "not JSON"),
        (b'{"id": true, "output": {"front": "http://a/b"}}', "application/json", 422, "invalid_request", "id: must be"),
        (b'{"id": 1, "output": {"front": "http://a/b"}, "hue": 3}', "application/json", 422, "invalid_request", "hue"),
        (b'{"id": 1, "output": {"front": "data:;base64,A"}}', "application/json", 422, "invalid_request", "base64"),
        (b'{"id": 1, "output": {"front": "data:;base64,AA*A"}}', "application/json", 422, "invalid_request", "base64"),
        (
            b'{"id": 1, "output": {"front": "data:image/png;base64,"}}',
            "application/json",
            422,
            "invalid_request",
            "empty",
        ),
        (b"id=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type", "multipart"),
        (b"{}", "", 415, "unsupported_media_type", "without a type"),
        (b"xx", "multipart/form-data", 422, "invalid_request", "id: is required"),
    ],
)
def test_a_wrong_body_is_refused_with_its_reason(
    client: FlaskClient, settings: Settings, body: bytes, content_type: str, status: int, code: str, words: str
) -> None:
    reply = client.post("/process", data=body, content_type=content_type)
    assert words in assert_problem(reply, status, code)["detail"]
    assert work_files(settings) == {}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"id": "1", "front": upload(b"")}, "front: the picture is empty"),
        ({"id": "1", "front": upload(b"", "")}, "give front, back or both"),
        ({"id": "1", "left": upload()}, "left: unknown field"),
        ({"id": "1", "front": upload(), "size": "3"}, "size: unknown field"),
        ({"id": "1", "front": [upload(), upload()]}, "front: is given twice"),
        ({"id": ["1", "2"], "front": upload()}, "id: is given twice"),
        ({"id": upload(), "front": upload()}, "id: must be an integer"),
        ({"front": upload()}, "id: is required"),
        ({"id": "1", "front": "front.png"}, "output.front: must begin with"),
        ({"id": "1", "front": upload(), "options": '{"modls": []}'}, "options.modls: unknown field"),
        ({"id": "1", "front": upload(), "options": '{"models": ["u2net"]}'}, "'u2net' is not one of"),
    ],
)
def test_a_wrong_form_is_refused_by_the_name_of_its_field(
    client: FlaskClient, settings: Settings, form: dict[str, Any], words: str
) -> None:
    reply = client.post("/process", data=form, content_type="multipart/form-data")
    assert words in assert_problem(reply, 422, "invalid_request")["detail"]
    assert work_files(settings) == {}


def test_options_that_are_not_json_are_told_so(client: FlaskClient) -> None:
    reply = client.post("/process", data={"id": "1", "front": upload(), "options": "{"})
    assert "options" in assert_problem(reply, 400, "invalid_json")["detail"]


def test_a_second_side_that_is_wrong_removes_the_file_of_the_first(client: FlaskClient, settings: Settings) -> None:
    reply = client.post("/process", data={"id": "1", "front": upload(), "back": upload(b"")})
    assert_problem(reply, 422, "invalid_request")
    assert not list((settings.outputs_dir / ".work").iterdir())


@pytest.mark.parametrize("query", ["?wiat=false", "?wait=maybe", "?wait=-1", "?wait="])
def test_a_query_that_means_nothing_is_refused(client: FlaskClient, query: str) -> None:
    assert_problem(client.post(f"/process{query}", json=BODY), 422, "invalid_request")


def test_a_request_over_the_limit_is_refused(settings: Settings) -> None:
    client = create_app(settings.model_copy(update={"upload_limit_mb": 1})).test_client()
    big = b"x" * 1_100_000
    assert_problem(send_form(client, {"id": "1", "front": upload(big)}), 413, "request_too_large")
    uri = f"data:image/png;base64,{base64.b64encode(big).decode()}"
    assert_problem(client.post("/process", json={"id": 1, "output": {"front": uri}}), 413, "request_too_large")
    many = {f"field{number}": "x" for number in range(50)}
    assert_problem(client.post("/process", data=many, content_type="multipart/form-data"), 413, "request_too_large")
    assert work_files(settings) == {}


def test_a_picture_over_the_limit_of_one_source_is_refused(settings: Settings) -> None:
    client = create_app(settings.model_copy(update={"source_limit_mb": 1})).test_client()
    reply = send_form(client, {"id": "1", "front": upload(b"x" * 1_000_001)})
    assert "front" in assert_problem(reply, 422, "source_too_large")["detail"]
    assert work_files(settings) == {}


def test_without_redis_nothing_is_accepted_and_nothing_is_left(tmp_path: Path) -> None:
    settings = load_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", outputs_dir=tmp_path)
    client = create_app(settings).test_client()
    reply = client.post("/process", data={"id": "1", "front": upload()})
    assert_problem(reply, 503, "redis_unavailable")
    assert reply.headers["Retry-After"] == "5"
    assert work_files(settings) == {}
    assert_problem(client.get("/jobs/abc"), 503, "redis_unavailable")


def test_a_job_whose_message_cannot_be_sent_is_taken_back(
    client: FlaskClient, settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreUnavailable("the queue is away")

    monkeypatch.setattr("api.accepting.send_plan", refuse)
    assert_problem(client.post("/process", data={"id": "1", "front": upload()}), 503, "redis_unavailable")
    assert work_files(settings) == {}
    with redis.Redis(port=redis_server.port) as connection:
        assert list(connection.scan_iter()) == []


@pytest.mark.parametrize(("reports", "status"), [([], 202), ([False], 422), ([False, True], 202)])
def test_a_job_that_insists_on_extraction_is_refused_when_no_running_worker_can_do_it(
    client: FlaskClient, store: Store, reports: list[bool], status: int
) -> None:
    for number, can_extract in enumerate(reports):
        store.publish_worker(f"w{number}", {"status": "ready", "models": {}, "extraction": can_extract})
    reply = client.post("/process", json={**BODY, "options": {"extract": "always"}}, headers=ASYNC)
    if status == 422:
        assert_problem(reply, 422, "extraction_not_configured")
        assert store.queue_depth() == 0
    else:
        assert reply.status_code == 202
    assert client.post("/process", json={**BODY, "options": {"extract": "auto"}}, headers=ASYNC).status_code == 202


def test_a_job_that_failed_in_extraction_says_what_it_has_used(
    client: FlaskClient, played_worker: PlayedWorker
) -> None:
    def fail(store: Store, job: Job) -> None:
        report = ExtractionReport(status="failed", reason="extraction_empty", calls=1, tokens=TokenUse(total=9))
        store.set_mark(job.job_id, f"{EXTRACTION_MARK}front", report.model_dump_json())
        error = {"code": "extraction_empty", "detail": "no picture", "retryable": True}
        store.finish(job.job_id, JobStatus.FAILED, error=error)

    played_worker.outcome = fail
    body = assert_problem(client.post("/process", json=BODY), 502, "extraction_empty")
    assert body["extraction"]["front"]["tokens"]["total"] == 9
    envelope = client.get(f"/jobs/{body['job_id']}").json
    assert envelope is not None
    assert envelope["extraction"]["front"]["reason"] == "extraction_empty"
    assert envelope["tokens"] == {"prompt": 0, "candidates": 0, "total": 9}


# --- GET /jobs --------------------------------------------------------------------------------------------------------


def test_the_envelope_has_exactly_the_promised_keys(client: FlaskClient, played_worker: PlayedWorker) -> None:
    done = client.post("/process", json=BODY).json
    assert done is not None
    reply = client.get(f"/jobs/{done['job_id']}")
    body = reply.json
    assert body is not None
    assert list(body) == ["job_id", "id", "status", "created_at", "started_at", "completed_at", "deadline",
                          "outputs_removed_at", "retry_of", "progress", "links", "queue_position", "eta_seconds",
                          "cells", "extraction", "tokens", "result", "error", "webhook"]  # fmt: skip
    assert list(body["cells"]["front_rmbg"]) == ["status", "url", "width", "height", "bytes", "seconds", "files",
                                                 "preflight", "print", "own_alpha", "cached", "error"]  # fmt: skip
    assert body["progress"] == {"done": 4, "total": 4}
    assert body["result"] == done
    assert body["links"]["self"] == f"http://service.test/jobs/{done['job_id']}"
    assert body["links"]["outputs"] == {name: done[name] for name in CELLS}
    assert body["created_at"].endswith("Z")
    assert reply.headers["Cache-Control"] == "no-store"


def test_progress_and_position_follow_the_job(client: FlaskClient, store: Store) -> None:
    first, second = (client.post("/process", json=BODY, headers=ASYNC).json for _ in range(2))
    assert first is not None
    assert second is not None
    assert second["queue_position"] == 2
    job: Job = store.get(first["job_id"])
    store.transition(job.job_id, JobStatus.PREPARING)
    assert (client.get(f"/jobs/{second['job_id']}").json or {})["queue_position"] == 1
    body = client.get(f"/jobs/{job.job_id}").json or {}
    assert (body["status"], body["queue_position"], body["progress"]["done"]) == ("preparing", None, 0)


@pytest.mark.parametrize("job_id", ["none", "0" * 32, "a" * 500, "..", "job:x", "%2e%2e"])
def test_an_unknown_job_is_not_found(client: FlaskClient, job_id: str) -> None:
    assert client.get(f"/jobs/{job_id}").status_code == 404


def test_the_code_of_an_unknown_job_is_job_not_found(client: FlaskClient) -> None:
    assert_problem(client.get("/jobs/0123"), 404, "job_not_found")
    assert_problem(client.get("/jobs/a_b"), 404, "job_not_found")
