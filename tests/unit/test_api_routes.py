"""Outputs, health, errors, request ids and metrics."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from shared.jobs import CellRecord, CellStatus, Job, JobStatus, Source, new_job
from shared.settings import Settings, load_settings
from shared.storage import output_name
from shared.store import Store
from tests.conftest import assert_problem
from tests.redis_server import free_port

JOB_ID = "0123456789abcdef0123456789abcdef"
NAME = f"design_123_{JOB_ID}_front_rmbg.png"
MODEL = {"status": "ready", "device": "cpu", "dtype": "float32", "profile": "starter", "licence": "MIT", "error": None}


def fetch(client: FlaskClient, path: str, **headers: str) -> TestResponse:
    """A reply made of a file, read whole and closed, as a server does."""
    return client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()}, buffered=True)


def report(status: str = "ready", **models: dict[str, Any]) -> dict[str, Any]:
    return {"status": status, "device": "cpu", "started_at": "2026-01-01T00:00:00Z", "models": models}


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(settings: Settings) -> bytes:
    settings.outputs_dir.mkdir(parents=True)
    (settings.outputs_dir / "secret.txt").write_text("secret")
    (settings.outputs_dir / NAME).write_bytes(b"\x89PNG" + bytes(range(200)))
    return b"\x89PNG" + bytes(range(200))


def make_job() -> Job:
    return new_job(
        job_id=JOB_ID, client_id=123, sources={"front": Source(kind="url", url="http://x/")}, models=("rmbg",)
    )


def test_an_output_that_was_delivered_and_removed_is_gone(client: FlaskClient, store: Store) -> None:
    store.create(make_job())
    assert client.get(f"/outputs/{NAME}").get_json()["code"] == "output_not_found"  # not delivered yet
    url = f"http://service.test/outputs/{NAME}"
    store.record_cell(JOB_ID, "front_rmbg", CellRecord(status=CellStatus.SUCCEEDED, url=url))
    reply = client.get(f"/outputs/{NAME}")
    assert (reply.status_code, reply.get_json()["code"]) == (410, "output_expired")


@pytest.mark.parametrize(
    ("kind", "ext"), [("rmbg_print", "png"), ("rmbg_proof_black", "webp"), ("contact_sheet", "webp")]
)
def test_a_file_beside_the_cutout_that_was_removed_is_gone_too(
    client: FlaskClient, store: Store, kind: str, ext: str
) -> None:
    store.create(make_job())
    name = output_name(123, JOB_ID, "front", kind, ext)
    url = f"http://service.test/outputs/{name}"
    assert client.get(f"/outputs/{name}").get_json()["code"] == "output_not_found"
    files = {} if kind == "contact_sheet" else {kind.partition("_")[2]: url}
    cell = CellRecord(status=CellStatus.SUCCEEDED, url=f"http://service.test/outputs/{NAME}", files=files)
    store.record_cell(JOB_ID, "front_rmbg", cell)
    store.finish(JOB_ID, JobStatus.PARTIAL, result={"contact_sheet": url})
    reply = client.get(f"/outputs/{name}")
    assert (reply.status_code, reply.get_json()["code"]) == (410, "output_expired")


def test_an_output_may_be_kept_for_ever(client: FlaskClient, output: bytes) -> None:
    reply = fetch(client, f"/outputs/{NAME}")
    assert (reply.status_code, reply.data, reply.content_type) == (200, output, "image/png")
    assert reply.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    again = fetch(client, f"/outputs/{NAME}", If_None_Match=reply.headers["ETag"])
    assert (again.status_code, again.data) == (304, b"")


def test_a_part_of_an_output_can_be_asked_for(client: FlaskClient, output: bytes) -> None:
    reply = fetch(client, f"/outputs/{NAME}", Range="bytes=10-19")
    assert (reply.status_code, reply.data) == (206, output[10:20])
    assert reply.headers["Content-Range"] == f"bytes 10-19/{len(output)}"


@pytest.mark.usefixtures("output")
@pytest.mark.parametrize("path", [f"/outputs/{NAME}", "/docs", "/", "/static/style.css"])
def test_a_range_outside_of_the_file_is_refused_with_the_files_size(client: FlaskClient, path: str) -> None:
    size = len(fetch(client, path).data)
    reply = fetch(client, path, Range=f"bytes={size}-")
    assert_problem(reply, 416, "requested_range_not_satisfiable")
    assert reply.headers["Content-Range"] == f"bytes */{size}"


@pytest.mark.usefixtures("output")
@pytest.mark.parametrize(
    "name",
    [NAME.replace("123", "124"), "secret.txt", "../secret.txt", "..%2fsecret.txt", "%2e%2e/%2e%2e/etc/passwd", ".work",
     "design_1_2_front_rmbg.png%00", "x" * 3000, f"{NAME}%0a", f".{NAME}.part"],
)  # fmt: skip
def test_nothing_but_outputs_is_served(client: FlaskClient, name: str) -> None:
    reply = client.get(f"/outputs/{name}")
    assert reply.status_code == 404
    assert (reply.json or {})["code"] in ("output_not_found", "not_found")
    assert b"secret" not in reply.data.replace(b"secret.txt", b"")


# --- health -----------------------------------------------------------------------------------------------------------


def test_a_service_without_a_worker_is_alive_but_not_ready(client: FlaskClient) -> None:
    assert client.get("/live").status_code == 200
    ready = client.get("/ready")
    assert (ready.status_code, (ready.json or {})["code"]) == (503, "models_not_ready")
    assert ready.headers["Retry-After"]
    health = client.get("/health")
    body = health.json or {}
    assert (health.status_code, body["status"], body["redis"]["status"]) == (503, "not_ready", "ready")
    assert body["models"]["rmbg"]["status"] == "absent"


@pytest.mark.parametrize(
    ("status", "rmbg", "birefnet", "expected"),
    [("ready", "ready", "ready", 200), ("loading", "ready", "loading", 503), ("ready", "ready", "failed", 503),
     ("draining", "ready", "ready", 503), ("failed", "failed", "failed", 503)],
)  # fmt: skip
def test_the_service_is_ready_when_a_worker_has_all_models_ready(
    client: FlaskClient, store: Store, status: str, rmbg: str, birefnet: str, expected: int
) -> None:
    store.publish_worker("w1", report(status, rmbg={**MODEL, "status": rmbg}, birefnet={**MODEL, "status": birefnet}))
    health = client.get("/health")
    assert (health.status_code, client.get("/ready").status_code) == (expected, expected)
    body = health.json or {}
    assert {name: model["status"] for name, model in body["models"].items()} == {"rmbg": rmbg, "birefnet": birefnet}
    assert body["models"]["rmbg"] == {**MODEL, "status": rmbg}
    assert [worker["name"] for worker in body["workers"]] == ["w1"]
    assert body["queue"] == {"depth": 0}
    assert body["version"]


def test_one_ready_worker_is_enough_and_two_halves_are_not(client: FlaskClient, store: Store) -> None:
    loading = {**MODEL, "status": "loading"}
    store.publish_worker("w1", report("ready", rmbg=MODEL, birefnet=loading))
    store.publish_worker("w2", report("ready", rmbg=loading, birefnet=MODEL))
    assert client.get("/ready").status_code == 503
    store.publish_worker("w3", report("ready", rmbg=MODEL, birefnet=MODEL))
    assert client.get("/ready").status_code == 200


def test_without_redis_the_service_says_so(tmp_path: Path) -> None:
    settings = load_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", outputs_dir=tmp_path)
    client = create_app(settings).test_client()
    assert client.get("/live").status_code == 200
    assert (client.get("/ready").json or {})["code"] == "redis_unavailable"
    health = client.get("/health")
    assert (health.status_code, (health.json or {})["redis"]) == (503, {"status": "unavailable"})
    assert "cutout_redis_up 0.0" in client.get("/metrics").text


def test_metrics_count_requests_by_route_and_show_the_queue(client: FlaskClient, store: Store) -> None:
    store.publish_worker("w1", report("ready", rmbg=MODEL, birefnet=MODEL))
    client.post("/process?wait=false", json={"id": 1, "output": {"front": "http://example.com/a"}})
    client.get("/jobs/none")
    client.get("/jobs/other")
    client.get("/no/such/page")
    text = client.get("/metrics").text
    assert 'cutout_http_requests_total{method="GET",route="/jobs/<job_id>",status="404"} 2.0' in text
    assert 'cutout_http_requests_total{method="ANY",route="unknown",status="404"} 1.0' in text
    assert "cutout_queue_depth 1.0" in text
    assert "cutout_jobs_accepted_total 1.0" in text
    assert 'cutout_model_ready{model="rmbg"} 1.0' in text


def test_health_and_metrics_show_a_worker_s_memory_and_its_device_s_queue(client: FlaskClient, store: Store) -> None:
    memory = {"resident_bytes": 5, "resident_peak_bytes": 7, "device_bytes": None, "device_peak_bytes": None}
    store.publish_worker("w1", {**report("ready", rmbg=MODEL, birefnet=MODEL), "memory": memory, "device_waiting": 3})
    store.publish_worker("w2", report("loading"))  # has measured nothing yet
    workers = {worker["name"]: worker for worker in client.get("/health").get_json()["workers"]}
    assert workers["w1"]["memory"] == memory
    assert workers["w1"]["device_waiting"] == 3
    assert workers["w2"]["memory"] is None
    text = client.get("/metrics").text
    assert 'cutout_worker_memory_bytes{kind="resident_peak",worker="w1"} 7.0' in text
    assert 'kind="device"' not in text
    assert 'cutout_device_waiting{worker="w1"} 3.0' in text
    store.forget_worker("w1")
    assert 'worker="w1"' not in client.get("/metrics").text


# --- errors, request ids, logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "not_found"), ("GET", "/process", 405, "method_not_allowed"),
     ("DELETE", "/health", 405, "method_not_allowed")],
)  # fmt: skip
def test_flasks_own_errors_are_problems_too(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    reply = client.open(path, method=method)
    assert (reply.status_code, reply.content_type) == (status, "application/problem+json")
    assert (reply.json or {})["code"] == code
    assert ("Allow" in reply.headers) is (status == 405)


def test_an_unexpected_error_shows_nothing_of_our_insides(app: Flask) -> None:
    @app.get("/boom")
    def boom() -> str:
        raise RuntimeError("password=hunter2")

    reply = app.test_client().get("/boom", headers={"X-Request-ID": "req-9"})
    assert (reply.status_code, (reply.json or {})["code"]) == (500, "internal_error")
    assert "hunter2" not in reply.text
    assert "Traceback" not in reply.text
    assert (reply.json or {})["request_id"] == "req-9"


@pytest.mark.parametrize("sent", ["abc-123", "trace:1.2_3", "x" * 128])
def test_a_sane_request_id_is_kept(client: FlaskClient, sent: str) -> None:
    assert client.get("/live", headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "<script>", "é"])
def test_any_other_request_id_is_replaced(client: FlaskClient, sent: str) -> None:
    found = client.get("/live", headers={"X-Request-ID": sent}).headers["X-Request-ID"]
    assert found != sent
    assert len(found) == 32


def test_every_request_is_logged_with_its_id_and_duration(app: Flask) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        app.test_client().get("/jobs/none?secret=1", headers={"X-Request-ID": "req-3"})
    done = next(line for line in lines if line["event"] == "request_done")
    assert (done["method"], done["path"], done["status"], done["request_id"]) == ("GET", "/jobs/none", 404, "req-3")
    assert done["seconds"] >= 0
    assert "secret" not in json.dumps(lines)


def test_an_app_is_made_without_touching_the_process(settings: Settings) -> None:
    before = logging.getLogger().handlers[:]
    assert create_app(settings) is not create_app(settings)
    assert logging.getLogger().handlers == before


def test_the_pages_run_only_our_own_files(client: FlaskClient) -> None:
    for path in ("/", "/docs"):
        reply = fetch(client, path)
        assert (reply.status_code, reply.mimetype) == (200, "text/html")
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http://" not in reply.text.replace("http://www.w3.org/", "")
        assert " style=" not in reply.text
        assert "<script>" not in reply.text
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/nothing.js").status_code == 404
