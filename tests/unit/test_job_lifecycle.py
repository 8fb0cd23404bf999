"""Cancel, delete, retry, list, deadlines: the routes on a real Redis, the worker played by a thread."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from shared.jobs import CellRecord, CellStatus, ExtractionReport, Job, JobStatus, TokenUse, cell_name, utc_now
from shared.settings import Settings
from shared.storage import FolderStorage, job_of, name_of, output_name
from shared.store import EXTRACTION_MARK, Store
from tests.conftest import PlayedWorker, assert_problem, eventually, succeed
from tests.redis_server import RedisServer

BODY = {"id": 123, "output": {"front": "https://example.com/front.png", "back": "https://example.com/back.png"}}
DATA_BODY = {"id": 123, "output": {"front": "data:;base64,Zg==", "back": "data:;base64,Yg=="}}
ASYNC = {"Prefer": "respond-async"}
CELLS = ["front_rmbg", "front_birefnet", "back_rmbg", "back_birefnet"]


def submit(client: FlaskClient, body: dict[str, Any] = BODY, cancel_after: str | None = None) -> str:
    headers = ASYNC if cancel_after is None else {**ASYNC, "Cancel-After": cancel_after}
    reply = client.post("/process", json=body, headers=headers)
    assert reply.status_code == 202, reply.text
    return str((reply.json or {})["job_id"])


def envelope(client: FlaskClient, job_id: str) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/jobs/{job_id}").json or {}
    return body


def deliver(settings: Settings, store: Store, job: Job, failed: tuple[str, ...] = ()) -> None:
    """End a job as the worker does, with files: outputs, prepared sides, and the small copies for review."""
    storage = FolderStorage(settings.outputs_dir, settings.base_url)
    for side in job.sides:
        storage.write_work(job.job_id, f"{side}.prepared", side.encode())
        for model in job.models:
            name = cell_name(side, model)
            if name not in failed and job.cells[name].status == CellStatus.QUEUED:
                file = output_name(job.id, job.job_id, side, model)
                storage.write_atomic(file, f"{name} of {job.job_id}".encode())
                storage.write_work(job.job_id, f"{name}-alpha.npy", name.encode())
    succeed(store, job, failed)


def content(settings: Settings, url: str) -> str:
    return (settings.outputs_dir / name_of(url)).read_text()


def files_of(settings: Settings, job_id: str) -> list[Path]:
    return [path for path in settings.outputs_dir.rglob("*") if job_id in str(path) and path.is_file()]


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[], [JobStatus.PREPARING], [JobStatus.PREPARING, JobStatus.PROCESSING]])
def test_an_open_job_is_canceled_from_every_state_and_again_gives_the_same(
    client: FlaskClient, store: Store, steps: list[JobStatus]
) -> None:
    job_id = submit(client)
    for status in steps:
        store.transition(job_id, status)
    first = client.post(f"/jobs/{job_id}/cancel")
    assert first.status_code == 200
    assert first.json is not None
    assert first.json["status"] == "canceled"
    assert first.json["error"]["code"] == "job_canceled"
    again = client.post(f"/jobs/{job_id}/cancel")
    assert (again.status_code, again.json) == (200, first.json)
    assert store.queue_depth() == 0
    finals = [event for _, event in store.events(job_id) if event.get("final")]
    assert [event["status"] for event in finals] == ["canceled"]


def test_cells_that_were_finished_before_a_cancel_stay_and_the_others_say_why(
    client: FlaskClient, store: Store
) -> None:
    job_id = submit(client)
    done = CellRecord(status=CellStatus.SUCCEEDED, url="http://service.test/outputs/x.png")
    store.transition(job_id, JobStatus.PREPARING)
    store.record_cell(job_id, "front_rmbg", done)
    store.record_cell(job_id, "back_rmbg", CellRecord(status=CellStatus.PROCESSING))
    body = client.post(f"/jobs/{job_id}/cancel").json or {}
    assert body["cells"]["front_rmbg"]["status"] == "succeeded"
    assert body["links"]["outputs"] == {"front_rmbg": done.url}
    for name in CELLS[1:]:
        assert (body["cells"][name]["status"], body["cells"][name]["error"]["code"]) == ("failed", "job_canceled")


@pytest.mark.usefixtures("played_worker")
def test_a_job_that_has_ended_otherwise_cannot_be_canceled(client: FlaskClient) -> None:
    job_id = str((client.post("/process", json=BODY).json or {})["job_id"])
    assert_problem(client.post(f"/jobs/{job_id}/cancel"), 409, "job_already_final")
    assert envelope(client, job_id)["status"] == "succeeded"


def test_whoever_waits_for_a_job_that_is_canceled_is_told(app: Flask, played_worker: PlayedWorker) -> None:
    def cancel(_: Store, job: Job) -> None:
        assert app.test_client().post(f"/jobs/{job.job_id}/cancel").status_code == 200

    played_worker.outcome = cancel
    body = assert_problem(app.test_client().post("/process", json=BODY), 409, "job_canceled")
    assert body["job_id"] == played_worker.taken[0].job_id


@pytest.mark.parametrize(
    "call", ["POST /jobs/{}/cancel", "POST /jobs/{}/retry", "DELETE /jobs/{}", "GET /jobs/{}/events"]
)
@pytest.mark.parametrize("job_id", ["0" * 32, "a_b"])
def test_every_route_of_a_job_says_when_there_is_none(client: FlaskClient, call: str, job_id: str) -> None:
    method, path = call.format(job_id).split()
    assert_problem(client.open(path, method=method), 404, "job_not_found")


# --- delete -----------------------------------------------------------------------------------------------------------


def test_a_deleted_job_leaves_nothing_of_its_own_and_everything_of_others(
    client: FlaskClient, played_worker: PlayedWorker, settings: Settings, redis_server: RedisServer
) -> None:
    played_worker.outcome = partial(deliver, settings)
    doomed, other = (str((client.post("/process", json=DATA_BODY).json or {})["job_id"]) for _ in range(2))
    assert len(files_of(settings, doomed)) == len(files_of(settings, other)) == 12
    reply = client.delete(f"/jobs/{doomed}")
    assert (reply.status_code, reply.data) == (204, b"")
    assert files_of(settings, doomed) == []
    assert len(files_of(settings, other)) == 12
    with redis.Redis(port=redis_server.port, decode_responses=True) as connection:
        assert not [key for key in connection.scan_iter() if doomed in key]
        for key in connection.keys("jobs:*"):
            if connection.type(key) == "zset":
                assert connection.zscore(key, doomed) is None
    assert_problem(client.delete(f"/jobs/{doomed}"), 404, "job_not_found")
    assert envelope(client, other)["status"] == "succeeded"


def test_deleting_an_open_job_cancels_it_and_ends_the_wait_for_it(app: Flask, played_worker: PlayedWorker) -> None:
    def delete(_: Store, job: Job) -> None:
        assert app.test_client().delete(f"/jobs/{job.job_id}").status_code == 204

    played_worker.outcome = delete
    assert_problem(app.test_client().post("/process", json=DATA_BODY), 409, "job_canceled")
    # The wait ends with the cancel, which is the first half of it.
    path = f"/jobs/{played_worker.taken[0].job_id}"
    eventually(lambda: app.test_client().get(path).status_code == 404)


def test_the_end_of_a_deleted_job_can_still_be_read_by_who_was_about_to(
    client: FlaskClient, store: Store, redis_server: RedisServer
) -> None:
    """Given a reader between two reads, when its job is canceled and deleted, then its next read finds the end."""
    open_job, ended = submit(client), submit(client)
    seen = store.events(open_job)[-1][0]
    client.post(f"/jobs/{ended}/cancel")
    for job_id in (open_job, ended):
        client.delete(f"/jobs/{job_id}")
    assert [event["status"] for _, event in store.events(open_job, seen)] == ["canceled"]
    assert store.events(ended) == []
    with redis.Redis(port=redis_server.port) as connection:
        assert 0 < connection.ttl(f"job:{open_job}:events") <= 60


# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def partial_job(client: FlaskClient, played_worker: PlayedWorker, settings: Settings) -> str:
    """A job of uploads whose back_rmbg has failed."""
    played_worker.outcome = partial(deliver, settings, failed=("back_rmbg",))
    body = client.post("/process", json=DATA_BODY).json or {}
    assert body["status"] == "partial"
    played_worker.outcome = partial(deliver, settings)
    return str(body["job_id"])


def test_a_retry_is_a_new_job_that_computes_only_what_failed(
    client: FlaskClient, played_worker: PlayedWorker, settings: Settings, store: Store, partial_job: str
) -> None:
    played_worker.hold()
    reply = client.post(f"/jobs/{partial_job}/retry", headers=ASYNC)
    assert (reply.status_code, reply.headers["Preference-Applied"]) == (202, "respond-async")
    body = reply.json or {}
    new = body["job_id"]
    assert reply.headers["Location"] == f"/jobs/{new}"
    assert (new != partial_job, body["retry_of"], body["id"]) == (True, partial_job, 123)
    assert body["progress"] == {"done": 3, "total": 4}
    assert {name: cell["cached"] for name, cell in body["cells"].items()} == {
        name: name != "back_rmbg" for name in CELLS
    }
    # The good cells are the new job's own files, and are there before any worker has come.
    for name in set(CELLS) - {"back_rmbg"}:
        assert new in body["cells"][name]["url"]
        assert content(settings, body["cells"][name]["url"]) == f"{name} of {partial_job}"
    told = [event for _, event in store.events(new)]
    assert [event.get("cell") for event in told] == [None, *(name for name in CELLS if name != "back_rmbg")]
    played_worker.release()
    eventually(lambda: bool(envelope(client, new)["status"] == "succeeded"))
    assert content(settings, envelope(client, new)["cells"]["back_rmbg"]["url"]) == f"back_rmbg of {new}"
    assert envelope(client, partial_job)["status"] == "partial"


def test_a_retry_keeps_its_files_when_the_old_job_is_deleted(
    client: FlaskClient, settings: Settings, partial_job: str
) -> None:
    body = client.post(f"/jobs/{partial_job}/retry").json or {}
    assert body["status"] == "succeeded"
    assert client.delete(f"/jobs/{partial_job}").status_code == 204
    assert content(settings, body["front_rmbg"]) == f"front_rmbg of {partial_job}"


def test_a_named_cell_is_computed_again_and_no_other(client: FlaskClient, settings: Settings, partial_job: str) -> None:
    reply = client.post(f"/jobs/{partial_job}/retry?cell=front_birefnet&wait=30")
    body = reply.json or {}
    assert reply.status_code == 200
    assert content(settings, body["front_birefnet"]) == f"front_birefnet of {body['job_id']}"
    assert content(settings, body["front_rmbg"]) == f"front_rmbg of {partial_job}"
    assert body["cells"]["back_rmbg"]["error"]["code"] == "inference_failed", "it was not asked for"


def test_a_good_cell_whose_file_is_gone_is_computed_again(
    client: FlaskClient, settings: Settings, partial_job: str
) -> None:
    (settings.outputs_dir / name_of(envelope(client, partial_job)["cells"]["front_rmbg"]["url"])).unlink()
    body = client.post(f"/jobs/{partial_job}/retry").json or {}
    assert content(settings, body["front_rmbg"]) == f"front_rmbg of {body['job_id']}"
    assert body["cells"]["front_rmbg"]["cached"] is False


def test_the_sources_of_a_retry_are_its_own(client: FlaskClient, settings: Settings, partial_job: str) -> None:
    new = str((client.post(f"/jobs/{partial_job}/retry").json or {})["job_id"])
    storage = FolderStorage(settings.outputs_dir, settings.base_url)
    assert {"front.prepared", "back.upload", "front_rmbg-alpha.npy"} <= set(storage.work_files(new))
    storage.remove_work(partial_job)
    assert (storage.work_dir(new) / "back.prepared").read_text() == "back"


def deliver_extracted(
    settings: Settings, reports: dict[str, ExtractionReport], store: Store, job: Job, failed: tuple[str, ...]
) -> None:
    """As `deliver`, after the designs were extracted, or not, as reported."""
    storage = FolderStorage(settings.outputs_dir, settings.base_url)
    for side, report in reports.items():
        if report.status == "extracted":
            name = storage.output_name(job.id, job.job_id, side, "original")
            storage.write_atomic(name, f"the {side} as it came".encode())
            report = report.model_copy(update={"original_url": storage.url(name)})
        store.set_mark(job.job_id, f"{EXTRACTION_MARK}{side}", report.model_dump_json())
    deliver(settings, store, job, failed)


def test_a_retry_knows_what_became_of_the_designs_that_it_goes_on_with(
    client: FlaskClient, played_worker: PlayedWorker, settings: Settings
) -> None:
    """Given a redrawn front and a back whose original was used, then the retry warns of both and has spent nothing."""
    tokens = TokenUse(prompt=1, candidates=2, total=3)
    spent: dict[str, Any] = {"model": "a-model", "calls": 2, "tokens": tokens, "warning": "Look at it.", "seconds": 9.5}
    reports = {
        "front": ExtractionReport(status="extracted", reason="photo", score=0.1, redrawn=True, **spent),
        "back": ExtractionReport(status="failed", reason="extraction_empty", detail="No.", **spent),
    }
    played_worker.outcome = partial(deliver_extracted, settings, reports, failed=("front_rmbg", "back_rmbg"))
    old = str((client.post("/process", json=DATA_BODY).json or {})["job_id"])
    played_worker.outcome = partial(deliver, settings)
    new = str((client.post(f"/jobs/{old}/retry").json or {})["job_id"])
    front, back = (envelope(client, new)["extraction"][side] for side in ("front", "back"))
    assert (front["status"], front["redrawn"], front["warning"]) == ("extracted", True, "Look at it.")
    assert (front["calls"], front["tokens"], front["cached"], front["seconds"]) == (0, None, True, None)
    assert (back["status"], back["warning"], back["calls"], back["cached"]) == ("failed", "Look at it.", 0, False)
    assert client.delete(f"/jobs/{old}").status_code == 204
    assert new in front["original_url"]
    assert content(settings, front["original_url"]) == "the front as it came"


def test_a_retry_asks_again_for_a_side_whose_extraction_failed_and_that_has_no_cell(
    client: FlaskClient, played_worker: PlayedWorker, settings: Settings
) -> None:
    report = ExtractionReport(status="failed", reason="extraction_unavailable", warning="The original was used.")
    outcome = partial(deliver_extracted, settings, {"back": report}, failed=("back_rmbg", "back_birefnet"))
    played_worker.outcome = outcome
    old = str((client.post("/process", json=DATA_BODY).json or {})["job_id"])
    played_worker.hold()
    for query in ("", "?cell=back_rmbg"):
        new = str((client.post(f"/jobs/{old}/retry{query}", headers=ASYNC).json or {})["job_id"])
        kept = FolderStorage(settings.outputs_dir, settings.base_url).work_files(new)
        assert ("front.prepared" in kept, "back.upload" in kept, "back.prepared" in kept) == (True, True, False)
        assert envelope(client, new)["extraction"] == {}


def test_a_retry_without_its_upload_says_so_and_leaves_nothing(
    client: FlaskClient, settings: Settings, partial_job: str
) -> None:
    storage = FolderStorage(settings.outputs_dir, settings.base_url)
    storage.remove_sources(partial_job)
    before = set(settings.outputs_dir.rglob("*"))
    body = assert_problem(client.post(f"/jobs/{partial_job}/retry"), 410, "source_expired")
    assert "back" in body["detail"]
    assert set(settings.outputs_dir.rglob("*")) == before


def test_a_url_is_fetched_again_when_its_side_is_not_kept(
    client: FlaskClient, played_worker: PlayedWorker, settings: Settings, store: Store
) -> None:
    played_worker.outcome = partial(deliver, settings, failed=("back_rmbg",))
    old = str((client.post("/process", json=BODY).json or {})["job_id"])
    FolderStorage(settings.outputs_dir, settings.base_url).remove_work(old)
    played_worker.hold()
    reply = client.post(f"/jobs/{old}/retry", headers=ASYNC)
    assert reply.status_code == 202
    assert store.get((reply.json or {})["job_id"]).sources["back"].url == "https://example.com/back.png"
    played_worker.release()


def test_what_cannot_be_tried_again_is_refused_by_name(
    client: FlaskClient, played_worker: PlayedWorker, settings: Settings
) -> None:
    played_worker.outcome = partial(deliver, settings)
    played_worker.hold()
    job_id = submit(client)
    assert_problem(client.post(f"/jobs/{job_id}/retry"), 409, "job_still_open")
    played_worker.release()
    eventually(lambda: bool(envelope(client, job_id)["status"] == "succeeded"))
    assert_problem(client.post(f"/jobs/{job_id}/retry"), 409, "nothing_to_retry")
    body = assert_problem(client.post(f"/jobs/{job_id}/retry?cell=left_rmbg"), 422, "invalid_request")
    assert "left_rmbg" in body["detail"]
    assert_problem(client.post(f"/jobs/{job_id}/retry?cel=front_rmbg"), 422, "invalid_request")


def try_again(client: FlaskClient, job_id: str, key: str = "again-1", query: str = "") -> TestResponse:
    return client.post(f"/jobs/{job_id}/retry{query}", headers={**ASYNC, "Idempotency-Key": key})


def made(reply: TestResponse) -> str:
    assert reply.status_code in (200, 202), reply.text
    return str((reply.json or {})["job_id"])


def test_the_same_retry_again_is_the_same_new_job(
    client: FlaskClient, played_worker: PlayedWorker, settings: Settings, partial_job: str
) -> None:
    played_worker.hold()
    first = try_again(client, partial_job)
    again = try_again(client, partial_job)
    assert (made(again), "Idempotent-Replayed" in first.headers) == (made(first), False)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert made(try_again(client, partial_job, key="again-2")) != made(first)
    played_worker.release()
    eventually(lambda: bool(envelope(client, made(first))["status"] == "succeeded"))
    # Also when what it was made from is not kept any more.
    FolderStorage(settings.outputs_dir, settings.base_url).remove_sources(partial_job)
    ended = try_again(client, partial_job)
    assert (ended.status_code, made(ended)) == (200, made(first))
    assert len(retries_of(client, partial_job)) == 2


def retries_of(client: FlaskClient, job_id: str) -> list[str]:
    return [job["job_id"] for job in (client.get("/jobs?limit=100").json or {})["jobs"] if job["retry_of"] == job_id]


def test_a_key_stands_for_one_retry_of_one_job(client: FlaskClient, partial_job: str) -> None:
    named = "?cell=back_rmbg&cell=front_rmbg"
    first = made(try_again(client, partial_job, query=named))
    eventually(lambda: bool(envelope(client, first)["status"] == "succeeded"))
    assert made(try_again(client, partial_job, query="?cell=front_rmbg&cell=back_rmbg")) == first
    for query in ("", "?cell=back_rmbg"):
        assert_problem(try_again(client, partial_job, query=query), 422, "idempotency_key_reused")
    assert_problem(try_again(client, first, query=named), 422, "idempotency_key_reused")
    reply = client.post("/process", json=BODY, headers={**ASYNC, "Idempotency-Key": "again-1"})
    assert_problem(reply, 422, "idempotency_key_reused")
    assert (retries_of(client, partial_job), retries_of(client, first)) == ([first], [])


def test_twenty_retries_at_the_same_instant_make_one_job(app: Flask, settings: Settings, partial_job: str) -> None:
    barrier = threading.Barrier(20)

    def send(_: int) -> TestResponse:
        client = app.test_client()
        barrier.wait(20)
        return try_again(client, partial_job)

    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(send, range(20)))
    assert len({made(reply) for reply in replies}) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in replies) == 1
    assert retries_of(app.test_client(), partial_job) == [made(replies[0])]
    assert {job_of(path.name) for path in settings.outputs_dir.glob("design_*")} == {partial_job, made(replies[0])}


def test_a_retry_that_is_refused_frees_its_key(client: FlaskClient, store: Store, played_worker: PlayedWorker) -> None:
    played_worker.hold()
    job_id = submit(client)
    assert_problem(try_again(client, job_id), 409, "job_still_open")
    store.cancel(job_id)
    played_worker.release()
    assert made(try_again(client, job_id))


def test_a_retry_with_a_model_that_is_not_offered_any_more_says_so(
    client: FlaskClient, settings: Settings, partial_job: str
) -> None:
    """Its job would fail with an internal_error that asks to be tried again."""
    app = create_app(settings.model_copy(update={"models": ("birefnet",)}))
    later = app.test_client()
    problem = assert_problem(later.post(f"/jobs/{partial_job}/retry", headers=ASYNC), 422, "invalid_request")
    assert "back_rmbg" in problem["detail"]
    assert retries_of(client, partial_job) == []
    assert later.post(f"/jobs/{partial_job}/retry?cell=back_birefnet", headers=ASYNC).status_code == 202
    app.extensions["service"].store.close()
    app.extensions["service"].celery.close()


# --- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45", 45), ("15m", 900), ("2h", 7200), ("24h", 86400), (" 5s ", 5)]
)
def test_cancel_after_sets_a_deadline(client: FlaskClient, store: Store, text: str, seconds: int) -> None:
    before = utc_now()
    deadline = store.get(submit(client, cancel_after=text)).deadline
    assert deadline is not None
    assert before + timedelta(seconds=seconds) <= deadline <= utc_now() + timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "0", "0s", "-5s", "1.5s", "PT90S", "25h", "90 s", "soon", "9999999"])
def test_a_deadline_that_means_nothing_is_refused(client: FlaskClient, store: Store, text: str) -> None:
    body = assert_problem(client.post("/process", json=BODY, headers={"Cancel-After": text}), 422, "invalid_request")
    assert "Cancel-After" in body["detail"]
    assert store.queue_depth() == 0


def overdue(store: Store, job_id: str, redis_server: RedisServer) -> None:
    """Let a job's deadline pass, as time does."""
    with redis.Redis(port=redis_server.port) as connection:
        connection.hset(f"job:{job_id}", "deadline", (utc_now() - timedelta(seconds=1)).isoformat())
        connection.zadd("jobs:deadlines", {job_id: utc_now().timestamp() - 1})


def test_a_job_past_its_deadline_is_expired_when_somebody_asks(
    client: FlaskClient, store: Store, redis_server: RedisServer
) -> None:
    job_id = submit(client, cancel_after="90s")
    assert envelope(client, job_id)["status"] == "queued"
    overdue(store, job_id, redis_server)
    body = envelope(client, job_id)
    assert (body["status"], body["error"]["code"]) == ("expired", "job_expired")
    assert_problem(client.post(f"/jobs/{job_id}/cancel"), 409, "job_already_final")


def test_a_wait_ends_with_the_deadline(client: FlaskClient, played_worker: PlayedWorker) -> None:
    played_worker.hold()
    reply = client.post("/process", json=BODY, headers={"Cancel-After": "1s"})
    body = assert_problem(reply, 504, "job_expired")
    assert {cell["error"]["code"] for cell in body["cells"].values()} == {"job_expired"}


# --- listing ----------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_page_by_page(client: FlaskClient) -> None:
    made = [submit(client) for _ in range(7)]
    listed: list[str] = []
    query, pages = "", 0
    while pages < 10:
        body = client.get(f"/jobs?limit=3{query}").json or {}
        listed += [job["job_id"] for job in body["jobs"]]
        pages += 1
        if body["next_cursor"] is None:
            break
        assert re.fullmatch(r"[A-Za-z0-9_-]+", body["next_cursor"])
        query = f"&cursor={body['next_cursor']}"
    assert listed == made[::-1]
    assert pages == 3
    exactly = client.get("/jobs?limit=7").json or {}
    assert (len(exactly["jobs"]), exactly["next_cursor"]) == (7, None), "no cursor to an empty page"


def test_a_job_that_comes_between_two_pages_does_not_move_the_second(client: FlaskClient) -> None:
    made = [submit(client) for _ in range(4)]
    first = client.get("/jobs?limit=2").json or {}
    submit(client)
    second = client.get(f"/jobs?limit=2&cursor={first['next_cursor']}").json or {}
    assert [job["job_id"] for job in second["jobs"]] == made[1::-1]


def test_a_listing_is_filtered_by_status_and_by_the_clients_id(client: FlaskClient) -> None:
    jobs = [submit(client, {**BODY, "id": client_id}) for client_id in (5, "5", "shirt", 6)]
    for job_id in jobs[:2]:
        client.post(f"/jobs/{job_id}/cancel")

    def listed(query: str) -> list[str]:
        return [job["job_id"] for job in (client.get(f"/jobs?{query}").json or {})["jobs"]]

    assert listed("status=canceled") == [jobs[1], jobs[0]]
    assert listed("status=queued&limit=1") == [jobs[3]]
    assert listed("status=queued&status=canceled") == jobs[::-1]
    assert listed("id=5") == [jobs[1], jobs[0]]
    assert listed("id=shirt&status=queued") == [jobs[2]]
    assert listed("id=nobody") == []
    assert listed("status=failed") == []


def test_an_entry_of_a_listing_says_how_the_job_stands(client: FlaskClient) -> None:
    job_id = submit(client, {**BODY, "id": "5"})
    entry = (client.get("/jobs").json or {})["jobs"][0]
    whole = envelope(client, job_id)
    assert entry == {name: whole[name] for name in entry}
    assert {"job_id", "id", "status", "created_at", "progress", "links"} <= set(entry)
    assert "cells" not in entry


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "cursor=x", "cursor=!!", "cursor=MTIz", "cursor=é", "status=done", "id=a.b",
     "state=failed"],
)  # fmt: skip
def test_a_listing_that_means_nothing_is_refused(client: FlaskClient, query: str) -> None:
    submit(client)
    assert_problem(client.get(f"/jobs?{query}"), 422, "invalid_request")


def test_the_listing_forgets_jobs_whose_record_has_expired(
    client: FlaskClient, redis_server: RedisServer, settings: Settings
) -> None:
    gone, kept = submit(client), submit(client)
    with redis.Redis(port=redis_server.port, decode_responses=True) as connection:
        connection.delete(f"job:{gone}", f"job:{gone}:events")  # as their lifetime does
        assert [job["job_id"] for job in (client.get("/jobs").json or {})["jobs"]] == [kept]
        assert connection.zrange("jobs:of:", 0, -1) == [kept]
        # Entries that nobody lists go by themselves.
        long_ago = (utc_now().timestamp() - 2 * settings.job_ttl_s - 5) * 1_000_000
        connection.zadd("jobs:of:", {"f" * 32: long_ago})
        submit(client)
        assert connection.zscore("jobs:of:", "f" * 32) is None
        assert all(0 < connection.ttl(key) <= 2 * settings.job_ttl_s for key in ("jobs:of:", "jobs:id::123"))


def test_every_caller_lists_only_their_own_jobs(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def come_as(name: str) -> None:
        for module in ("api.accepting", "api.routes.jobs"):
            monkeypatch.setattr(f"{module}.caller", lambda: name)

    made = {}
    for name in ("shop", "print"):
        come_as(name)
        made[name] = submit(client)
    for name in made:
        come_as(name)
        assert [job["job_id"] for job in (client.get("/jobs").json or {})["jobs"]] == [made[name]]


# --- the bounded queue ------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_with_a_time_to_come_again_and_leaves_nothing(settings: Settings, store: Store) -> None:
    client = create_app(settings.model_copy(update={"max_queued_jobs": 2})).test_client()
    jobs = [submit(client, DATA_BODY) for _ in range(2)]
    before = set(settings.outputs_dir.rglob("*"))
    reply = client.post("/process", json=DATA_BODY)
    assert "2 jobs wait already (MAX_QUEUED_JOBS)" in assert_problem(reply, 503, "queue_full")["detail"]
    assert reply.headers["Retry-After"] == "5", "nothing is measured yet"
    assert set(settings.outputs_dir.rglob("*")) == before
    assert store.queue_depth() == 2
    # Jobs of 8 s each, one after the other.
    for number in range(3):
        store.pace.record(1000 + 8 * number, 1008 + 8 * number, 4)
    assert client.post("/process", json=DATA_BODY).headers["Retry-After"] == "8"
    # A place is free when a job begins or ends.
    client.post(f"/jobs/{jobs[0]}/cancel")
    assert client.post("/process", json=DATA_BODY, headers=ASYNC).status_code == 202
