"""GET /jobs/{job_id}/events on a real Redis."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api.app import create_app
from api.routes import events as events_route
from shared.jobs import CellRecord, CellStatus, Job, JobStatus, Source, new_job, new_job_id
from shared.settings import Settings
from shared.store import Store
from tests.conftest import assert_problem, eventually, succeed

Frame = dict[str, Any]


@pytest.fixture
def job(store: Store) -> Job:
    sources = {"front": Source(kind="url", url="https://example.com/front.png")}
    job = new_job(job_id=new_job_id(), client_id=7, sources=sources, models=("rmbg", "birefnet"))  # type: ignore[arg-type]
    store.create(job)
    return job


class Stream:
    """A client of a stream that reads it as a browser does, in a thread of its own."""

    def __init__(self, app: Flask, job_id: str, **headers: str) -> None:
        self.reply = app.test_client().get(f"/jobs/{job_id}/events", headers=headers)
        self.frames: list[Frame] = []
        self.comments = 0
        self.has_ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for part in self.reply.iter_encoded():
            self._take(part.decode())
        self.reply.close()
        self.has_ended.set()

    def _take(self, text: str) -> None:
        assert text.endswith("\n\n")
        fields = dict(line.partition(": ")[::2] for line in text.strip().splitlines())
        if "data" in fields:
            self.frames.append({"id": fields["id"], "event": fields["event"], **json.loads(fields["data"])})
        elif "" in fields:
            self.comments += 1


def test_a_stream_tells_every_change_as_it_happens_and_ends_with_the_end(app: Flask, store: Store, job: Job) -> None:
    stream = Stream(app, job.job_id)
    assert stream.reply.status_code == 200
    assert stream.reply.mimetype == "text/event-stream"
    assert stream.reply.headers["X-Accel-Buffering"] == "no"
    assert stream.reply.headers["Cache-Control"] == "no-store"
    eventually(lambda: [frame["status"] for frame in stream.frames] == ["queued"])
    store.transition(job.job_id, JobStatus.PREPARING)
    eventually(lambda: stream.frames[-1]["status"] == "preparing")
    store.transition(job.job_id, JobStatus.PROCESSING)
    done = CellRecord(status=CellStatus.SUCCEEDED, url="http://service.test/outputs/a.png", width=8, height=9)
    store.record_cell(job.job_id, "front_rmbg", done)
    eventually(lambda: stream.frames[-1].get("cell") == "front_rmbg")
    assert (stream.frames[-1]["event"], stream.frames[-1]["url"]) == ("cell", done.url)
    store.finish(job.job_id, JobStatus.PARTIAL, result={"id": 7})
    assert stream.has_ended.wait(20)
    assert stream.frames[-1]["final"] is True
    assert stream.frames[-1]["result"] == {"id": 7}
    assert [(frame["id"], frame["type"]) for frame in stream.frames] == [
        (event_id, event["type"]) for event_id, event in store.events(job.job_id)
    ]


@pytest.mark.parametrize("how", ["header", "query"])
def test_a_client_that_comes_back_gets_what_it_missed_and_nothing_twice(
    client: FlaskClient, store: Store, job: Job, how: str
) -> None:
    succeed(store, job)
    everything = store.events(job.job_id)
    seen = everything[2][0]
    query = f"?last_event_id={seen}" if how == "query" else ""
    reply = client.get(f"/jobs/{job.job_id}/events{query}", headers={"Last-Event-ID": seen} if how == "header" else {})
    ids = [line.removeprefix("id: ") for line in reply.text.splitlines() if line.startswith("id: ")]
    assert ids == [event_id for event_id, _ in everything[3:]]


def test_a_client_that_has_seen_the_end_is_told_not_to_come_again(client: FlaskClient, store: Store, job: Job) -> None:
    succeed(store, job)
    last = store.events(job.job_id)[-1][0]
    reply = client.get(f"/jobs/{job.job_id}/events", headers={"Last-Event-ID": last})
    assert (reply.status_code, reply.data) == (204, b"")


@pytest.mark.parametrize("last", ["x", "5", "1-", "-1", "1-2-3", "9" * 30 + "-0"])
def test_an_event_id_that_is_none_is_refused(client: FlaskClient, job: Job, last: str) -> None:
    assert_problem(client.get(f"/jobs/{job.job_id}/events", headers={"Last-Event-ID": last}), 422, "invalid_request")
    assert_problem(client.get(f"/jobs/{job.job_id}/events?from={last}"), 422, "invalid_request")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats at every look."""
    monkeypatch.setattr(events_route, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(events_route, "_LOOK_S", 0.02)


@pytest.mark.usefixtures("often")
def test_a_quiet_stream_has_comments(app: Flask, store: Store, job: Job) -> None:
    stream = Stream(app, job.job_id)
    eventually(lambda: stream.comments >= 3)
    store.finish(job.job_id, JobStatus.CANCELED)
    assert stream.has_ended.wait(20)
    assert [frame["status"] for frame in stream.frames] == ["queued", "canceled"]


@pytest.mark.usefixtures("often")
def test_a_stream_of_a_job_whose_record_is_gone_ends(app: Flask, store: Store, job: Job) -> None:
    stream = Stream(app, job.job_id)
    eventually(lambda: len(stream.frames) == 1)
    store.delete(job)
    assert stream.has_ended.wait(20)


def test_streams_are_bounded_and_give_their_places_back(settings: Settings, store: Store, job: Job) -> None:
    app = create_app(settings.model_copy(update={"max_event_streams": 2}))
    streams = [Stream(app, job.job_id) for _ in range(2)]
    reply = app.test_client().get(f"/jobs/{job.job_id}/events")
    assert_problem(reply, 503, "too_many_event_streams")
    assert reply.headers["Retry-After"] == "5"
    assert app.test_client().get(f"/jobs/{job.job_id}").status_code == 200
    store.finish(job.job_id, JobStatus.CANCELED)
    assert all(stream.has_ended.wait(20) for stream in streams)
    assert app.test_client().get(f"/jobs/{job.job_id}/events").status_code == 200


def test_a_client_that_goes_away_gives_its_place_back(settings: Settings, job: Job) -> None:
    app = create_app(settings.model_copy(update={"max_event_streams": 1}))
    for _ in range(3):
        reply = app.test_client().get(f"/jobs/{job.job_id}/events")
        assert reply.status_code == 200
        next(reply.iter_encoded())
        reply.close()  # as the server does when it cannot write any more


def test_a_server_that_stops_ends_its_streams(app: Flask, job: Job) -> None:
    stream = Stream(app, job.job_id)
    eventually(lambda: len(stream.frames) == 1)
    app.extensions["service"].closing.set()
    assert stream.has_ended.wait(20)


def test_waits_and_streams_of_one_job_see_the_same_end(app: Flask, store: Store, job: Job) -> None:
    streams = [Stream(app, job.job_id) for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        waits = [pool.submit(store.wait_final, job.job_id, 30) for _ in range(10)]
        succeed(store, job)
        results = [wait.result(30).result for wait in waits]
    assert all(stream.has_ended.wait(20) for stream in streams)
    assert all(stream.frames[-1]["result"] == result for stream in streams for result in results)
