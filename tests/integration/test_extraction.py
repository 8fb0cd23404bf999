"""Design extraction through a real worker process, a real Redis and a server that stands in for Gemini.

What counts is what the server has counted: each request there is money.
"""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from PIL import Image

from api.report_schemas import SideReport
from shared.jobs import CellStatus, JobStatus
from shared.messages import make_celery
from shared.settings import Settings, load_settings
from shared.store import Store
from tests import gemini_server as server
from tests.gemini_server import KEY, GeminiServer, jpeg
from tests.integration.test_worker import Service
from tests.processes import Process, ask_for_events, wait_for
from tests.redis_server import RedisServer

FRONT, BACK = jpeg(120, 80), jpeg(96, 96, (20, 60, 200))
ASKED = {"extract": "always"}


@pytest.fixture
def service(settings: Settings, store: Store, tmp_path: Path) -> Iterator[Service]:
    service = Service(settings, store, tmp_path)
    yield service
    service.close()


def start(service: Service, remote: GeminiServer, **own: str) -> Process:
    return service.start_worker(
        **{"GEMINI_API_KEY": KEY, "GEMINI_BASE_URL": remote.url, "GEMINI_TRIES": "1", "LOG_LEVEL": "DEBUG", **own}
    )


def pictures_of(remote: GeminiServer) -> list[tuple[int, int]]:
    """Size of the picture in each request, in order: which side was asked."""
    return [Image.open(io.BytesIO(asked.picture)).size for asked in remote.requests]


def extraction(job: Any, side: str) -> dict[str, Any]:
    assert job.result is not None
    report: dict[str, Any] = job.result["sides"][side]["extraction"]
    return report


class TestAWorker:
    """One worker for all of these."""

    @pytest.fixture(scope="class")
    @classmethod
    def remote(cls) -> Iterator[GeminiServer]:
        with GeminiServer() as running:
            yield running

    @pytest.fixture(scope="class")
    @classmethod
    def service(
        cls, redis_server: RedisServer, remote: GeminiServer, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Service]:
        folder = tmp_path_factory.mktemp("extraction")
        settings = load_settings(redis_url=redis_server.url, outputs_dir=folder / "outputs", base_url="http://x.test")
        store = Store.from_settings(settings)
        service = Service(settings, store, folder)
        start(service, remote, EXTRACT_DESIGN="always")
        yield service
        service.close()
        store.close()

    @pytest.fixture(autouse=True)
    def forget(self, remote: GeminiServer) -> None:
        remote.requests.clear()
        remote.connections = 0
        remote.will(server.picture())

    def test_it_extracts_each_side_once_for_all_of_its_models(self, service: Service, remote: GeminiServer) -> None:
        job = service.wait(service.submit({"front": FRONT, "back": BACK}))
        assert job.status == JobStatus.SUCCEEDED
        assert sorted(pictures_of(remote)) == [(96, 96), (120, 80)]
        assert job.result is not None
        assert job.result["tokens"] == {"prompt": 2580, "candidates": 2300, "total": 4880}
        for side, source in (("front", FRONT), ("back", BACK)):
            report = extraction(job, side)
            assert (report["status"], report["reason"], report["calls"]) == ("extracted", "asked", 1)
            assert job.extraction[side].model_dump(mode="json") == report
            with service.storage.open_output(report["original_url"].rpartition("/")[2]) as file:
                assert (np.asarray(Image.open(file)) == np.asarray(Image.open(io.BytesIO(source)))).all()
        assert service.png(job, "front_rmbg").shape == (80, 120, 4)
        assert service.png(job, "back_birefnet").shape == (96, 96, 4)
        work = service.settings.outputs_dir / ".work" / job.job_id
        wait_for("the clean-up", lambda: all(path.suffix == ".npy" for path in work.iterdir()))

    def test_a_redrawn_design_is_for_a_person_to_look_at(self, service: Service, remote: GeminiServer) -> None:
        remote.will(server.picture(jpeg(256, 256, (0, 90, 200))))
        options = {"extract": "always", "proofs": True}
        job = service.wait(service.submit({"front": jpeg(121, 80)}, options=options))
        assert job.result is not None
        front = job.result["sides"]["front"]
        assert front["extraction"]["redrawn"] is True
        assert front["needs_review"] is True
        assert front["extraction"]["warning"] in front["review_reason"]
        SideReport.model_validate(front)
        plain = service.wait(service.submit({"front": jpeg(121, 80)}, options={"extract": "never", "proofs": True}))
        assert plain.result is not None
        widths = []
        for result in (plain.result, job.result):
            with service.storage.open_output(result["contact_sheet"].rpartition("/")[2]) as file:
                widths.append(Image.open(file).width)
        assert widths[1] > widths[0], "the original has a tile of its own"

    def test_it_pays_once_for_a_message_delivered_three_times(self, service: Service, remote: GeminiServer) -> None:
        remote.will(server.held(server.picture()))
        job_id = service.submit({"front": jpeg(118, 80)})
        wait_for("the call", remote.entered.is_set)
        service.send(job_id)
        service.send(job_id)
        # A job behind them is done, so they have been taken as well.
        service.wait(service.submit({"front": BACK}, options={"extract": "never"}))
        remote.release.set()
        assert service.wait(job_id).status == JobStatus.SUCCEEDED
        service.wait(service.submit({"front": BACK}, options={"extract": "never"}))
        assert len(remote.requests) == 1
        assert len(service.final_events(job_id)) == 1

    def test_it_goes_on_with_the_original_when_extraction_fails(self, service: Service, remote: GeminiServer) -> None:
        remote.will(server.prompt_blocked("PROHIBITED_CONTENT"))
        job = service.wait(service.submit({"front": jpeg(116, 80)}))
        assert job.status == JobStatus.SUCCEEDED
        report = extraction(job, "front")
        assert (report["status"], report["reason"]) == ("failed", "extraction_blocked")
        assert report["warning"]

    def test_it_sends_nothing_away_for_a_job_that_says_never(self, service: Service, remote: GeminiServer) -> None:
        job = service.wait(service.submit({"front": jpeg(114, 80), "back": BACK}, options={"extract": "never"}))
        assert job.status == JobStatus.SUCCEEDED
        assert extraction(job, "front")["status"] == "skipped"
        assert job.result is not None
        assert "tokens" not in job.result
        assert remote.connections == 0


def test_a_worker_killed_in_mid_call_costs_that_call_and_no_other(service: Service, remote: GeminiServer) -> None:
    """Given the front is answered and the back is not, when the worker is killed, then only the back is asked again."""
    remote.will(server.picture(), server.held(server.picture()), server.picture())
    # One call at a time, so that exactly one side has its answer.
    worker = start(service, remote, GEMINI_CALLS_AT_ONCE="1")
    job_id = service.submit({"front": FRONT, "back": BACK}, options=ASKED)
    wait_for("the second call", remote.entered.is_set, worker)
    folder = service.settings.outputs_dir / ".extracted"
    wait_for("the first answer on the disk", lambda: len(list(folder.glob("*.answer"))) == 1, worker)
    worker.kill()
    first, second = pictures_of(remote)
    asked_last = "front" if second == (120, 80) else "back"
    begun = service.storage.work_dir(job_id) / f"{asked_last}-begun.txt"
    assert begun.read_text() == "1", "a call that never ended is counted: there is no third one"

    start(service, remote, GEMINI_CALLS_AT_ONCE="1")
    job = service.wait(job_id)
    assert job.status == JobStatus.SUCCEEDED
    assert pictures_of(remote) == [first, second, second]
    assert {extraction(job, side)["status"] for side in ("front", "back")} == {"extracted"}
    calls = {side: extraction(job, side)["calls"] for side in ("front", "back")}
    assert calls.pop(asked_last) == 2, "the lost call is on the bill, too"
    assert list(calls.values()) == [1]
    assert len(service.final_events(job_id)) == 1


def test_a_worker_killed_after_the_answer_costs_nothing(service: Service, remote: GeminiServer) -> None:
    worker = start(service, remote)
    (service.gate / "hold-birefnet").touch()
    job_id = service.submit({"front": FRONT, "back": BACK}, options=ASKED)
    wait_for("a forward pass", (service.gate / "entered-birefnet").exists, worker)
    worker.kill()
    # The message of the plan comes back as well, as if it had never been acknowledged.
    service.store.set_mark(job_id, "canvas", "")
    service.send(job_id)
    (service.gate / "hold-birefnet").unlink()
    start(service, remote)
    assert service.wait(job_id).status == JobStatus.SUCCEEDED
    assert len(remote.requests) == 2
    assert len(service.final_events(job_id)) == 1


def test_the_key_is_in_nothing_that_is_written(
    service: Service, remote: GeminiServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Given a server that repeats the key in its errors, then no log, record, message or file has it."""
    remote.will(
        server.picture(),
        server.problem(400, "INVALID_ARGUMENT", f"something about the key {KEY}"),
        server.problem(500, "INTERNAL", KEY),
        server.words(f"The key is {KEY}."),
        server.raw(f"broken {KEY}".encode()),
    )
    worker = start(service, remote, EXTRACT_ON_ERROR="fail")
    with make_celery(service.settings, "flower") as flower:
        ask_for_events(flower, worker)
    with redis.Redis(port=redis_server.port) as client, client.pubsub() as events:
        events.psubscribe("*")  # what Flower is told, among others
        codes = []
        for number in range(5):
            job = service.wait(service.submit({"front": jpeg(100 + number, 80)}, options=ASKED))
            codes.append(None if job.error is None else job.error["code"])
            if number:
                assert job.status == JobStatus.FAILED
                assert job.extraction["front"].reason == codes[-1]
                assert {cell.status for cell in job.cells.values()} == {CellStatus.FAILED}
        assert codes == [
            None, "extraction_rejected", "extraction_unavailable", "extraction_empty", "extraction_bad_answer",
        ]  # fmt: skip
        assert all(asked.key == KEY for asked in remote.requests)
        written = "".join(f"{key} {everything_in(client, key)}\n" for key in client.keys("*"))
        while message := events.get_message(timeout=0.2):
            written += str(message) + event_text(message["data"])
    assert "extraction_rejected" in written
    assert "task-succeeded" in written
    assert worker.terminate() == 0
    written += "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    assert "side_extracted" in written
    assert KEY not in written


def event_text(data: object) -> str:
    """An event's words: in the message they are base64."""
    body = json.loads(data).get("body", "") if isinstance(data, bytes) else ""
    return base64.b64decode(body).decode()


def everything_in(client: Any, key: bytes) -> object:
    """The value of a Redis key of any type."""
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda name: client.lrange(name, 0, -1),
        b"set": client.smembers,
        b"zset": lambda name: client.zrange(name, 0, -1),
        b"stream": client.xrange,
        b"none": client.get,  # gone since it was listed: it is nothing now
    }
    return read[client.type(key)](key)
