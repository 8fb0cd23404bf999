"""Cancel, deadlines, retries and the result cache through the real worker, and the whole API in front of it."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from shared.jobs import JobStatus, Source, new_job, new_job_id, utc_now
from shared.messages import CELL_QUEUE, QUEUE
from shared.settings import Settings, load_settings
from shared.store import Store
from tests.conftest import eventually
from tests.integration.test_api_server import Server
from tests.integration.test_worker import Service, assert_is_own, picture
from tests.processes import wait_for
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Api"]:
    """One API and one worker for all tests of this module, on a Redis of their own; every test has its own pictures."""
    folder = tmp_path_factory.mktemp("lifecycle")
    with RedisServer() as redis_server:
        settings = load_settings(redis_url=redis_server.url, outputs_dir=folder / "outputs")
        store = Store.from_settings(settings)
        server = Server(settings, folder / "api.log")
        service = Service(settings.model_copy(update={"base_url": server.url}), store, folder)
        try:
            service.start_worker()
            eventually(server.is_live, 60)
            yield Api(service, server, redis_server)
        finally:
            service.close()
            server.close()
            store.close()


@pytest.fixture
def api(started: "Api") -> Iterator["Api"]:
    yield started
    for name in started.service.gate.iterdir():
        name.unlink()
    wait_for("the worker to be idle", started.is_idle)


@pytest.fixture
def service(api: "Api") -> Service:
    return api.service


def passes(service: Service, model: str) -> int:
    """Forward passes that a model has made."""
    count = service.gate / f"passes-{model}"
    return count.stat().st_size if count.exists() else 0


class Api:
    """A real API and a real worker on one Redis."""

    def __init__(self, service: Service, server: Server, redis_server: RedisServer) -> None:
        self.service, self.server, self._redis_server = service, server, redis_server
        self.url = server.url

    def is_idle(self) -> bool:
        """No message waits and none is being worked on."""
        with redis.Redis(port=self._redis_server.port) as client:
            return not any(client.llen(name) for name in (QUEUE, CELL_QUEUE)) and not client.hlen("unacked:worker-1")

    def process(self, data: bytes, options: str = "{}", **request: Any) -> requests.Response:
        """POST /process with one picture."""
        form = {"id": "1", "options": options}
        return requests.post(f"{self.url}/process", timeout=60, data=form, files={"front": ("a.png", data)}, **request)


# --- the worker -------------------------------------------------------------------------------------------------------


class TestAWorker:
    def test_a_canceled_job_costs_no_more_device_time_and_keeps_its_finished_cells(
        self, service: Service, api: Api
    ) -> None:
        """Given a cell on the device, when its job is canceled, then no other cell of it ever gets there."""
        service.wait(service.submit({"front": picture(1)}, models=("rmbg",)))  # so that this cell is finished at once
        (service.gate / "hold-birefnet").touch()
        job_id = service.submit({"front": picture(1)})
        wait_for("a forward pass", (service.gate / "entered-birefnet").exists)
        later = service.submit({"front": picture(2), "back": picture(3)}, models=("birefnet",))
        wait_for("its cells to wait", lambda: service.store.get(later).cells["back_birefnet"].status == "processing")
        assert service.store.cancel(job_id)
        assert service.store.cancel(later)
        (service.gate / "hold-birefnet").unlink()
        wait_for("the worker to be idle", api.is_idle)
        job = service.store.get(job_id)
        assert job.status == JobStatus.CANCELED
        assert_is_own(service.png(job, "front_rmbg"), picture(1), "rmbg")
        assert len(service.final_events(job_id)) == 1
        # Whatever was on the device when the jobs ended is not delivered, and its file is not left behind.
        assert list(service.settings.outputs_dir.glob("design_*birefnet*")) == []
        assert passes(service, "birefnet") == 1

    def test_a_job_canceled_in_the_queue_is_not_even_prepared(self, service: Service) -> None:
        (service.gate / "hold-rmbg").touch()
        busy = [service.submit({"front": picture(110 + n)}, models=("rmbg",)) for n in range(8)]
        wait_for("all threads to be busy", lambda: all(
            service.store.get(job_id).cells["front_rmbg"].status == "processing" for job_id in busy
        ))  # fmt: skip
        job_id = service.submit({"front": picture(119)}, models=("rmbg",))
        assert service.store.queue_position(job_id) == 1
        assert service.store.cancel(job_id)
        (service.gate / "hold-rmbg").unlink()
        for other in busy:
            assert service.wait(other).status == JobStatus.SUCCEEDED
        assert service.storage.work_files(job_id) == ["front.upload"]

    def test_a_job_past_its_deadline_gets_no_device_time(self, service: Service, api: Api) -> None:
        (service.gate / "hold-rmbg").touch()
        first = service.submit({"front": picture(21)}, models=("rmbg",))
        wait_for("a forward pass", (service.gate / "entered-rmbg").exists)
        job_id = service.submit({"front": picture(22)}, ("rmbg",), deadline=utc_now() + timedelta(seconds=0.3))
        # Nobody asks; its one cell waits for the device meanwhile.
        wait_for("the deadline", lambda: service.store.get(job_id).is_final)
        (service.gate / "hold-rmbg").unlink()
        service.wait(first)
        wait_for("the worker to be idle", api.is_idle)
        job = service.store.get(job_id)
        assert job.status == JobStatus.EXPIRED
        assert job.cells["front_rmbg"].error["code"] == "job_expired"  # type: ignore[index]
        assert passes(service, "rmbg") == 1

    def test_a_job_deleted_in_mid_forward_leaves_no_file(self, service: Service, api: Api) -> None:
        (service.gate / "hold-rmbg").touch()
        job_id = service.submit({"front": picture(23)}, models=("rmbg",))
        wait_for("a forward pass", (service.gate / "entered-rmbg").exists)
        job = service.store.get(job_id)
        service.store.cancel(job_id)
        service.store.delete(job)
        service.storage.remove_work(job_id)
        (service.gate / "hold-rmbg").unlink()
        wait_for("the worker to be idle", api.is_idle)
        assert [path for path in service.settings.outputs_dir.rglob("*") if job_id in str(path)] == []

    def test_a_begun_job_is_finished_before_the_next_is_begun(self, service: Service) -> None:
        """Given a burst, then its first job is done long before its last one is begun."""
        jobs = [service.submit({"front": picture(200 + n)}) for n in range(24)]
        service.wait(jobs[-1])
        done = {job_id: service.wait(job_id) for job_id in jobs}
        completed, started = done[jobs[0]].completed_at, done[jobs[-1]].started_at
        assert completed is not None
        assert started is not None
        assert completed < started


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_failed_cell_is_tried_again_and_the_good_one_is_not(api: Api) -> None:
    (api.service.gate / "break-birefnet").touch()
    first = api.process(picture(31)).json()
    assert first["status"] == "partial"
    (api.service.gate / "break-birefnet").unlink()
    before = passes(api.service, "rmbg")
    reply = requests.post(f"{api.url}/jobs/{first['job_id']}/retry", timeout=60)
    again = reply.json()
    assert (reply.status_code, again["status"], again["job_id"] != first["job_id"]) == (200, "succeeded", True)
    assert passes(api.service, "rmbg") == before
    assert (again["cells"]["front_rmbg"]["cached"], again["cells"]["front_birefnet"]["cached"]) == (True, False)
    assert again["sides"]["front"]["agreement"] is not None, "both models are compared, also the one taken over"
    png = requests.get(again["front_rmbg"], timeout=30)
    assert (png.status_code, png.content) == (200, requests.get(first["front_rmbg"], timeout=30).content)


def test_no_cache_on_the_request_computes_anew(api: Api) -> None:
    data = picture(32)
    replies = [api.process(data, headers=headers).json() for headers in ({}, {}, {"Cache-Control": "no-cache"})]
    assert [reply["cells"]["front_rmbg"]["cached"] for reply in replies] == [False, True, False]
    png = [requests.get(reply["front_rmbg"], timeout=30).content for reply in replies]
    assert png[0] == png[1] == png[2]


def test_a_stream_over_the_wire_comes_event_by_event(api: Api) -> None:
    """Given a job held on the device, then what came before is read already: nothing collects events on the way."""
    (api.service.gate / "hold-rmbg").touch()
    job_id = api.process(picture(33), '{"models": ["rmbg"]}', headers={"Prefer": "respond-async"}).json()["job_id"]
    seen: list[str] = []
    with requests.get(f"{api.url}/jobs/{job_id}/events", stream=True, timeout=60) as reply:
        assert reply.headers["Content-Type"] == "text/event-stream"
        for line in reply.iter_lines(chunk_size=1):
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                seen.append(f"{event.get('cell', '')} {event['status']}".strip())
                if seen[-1] == "front_rmbg processing":
                    (api.service.gate / "hold-rmbg").unlink()
    assert seen == ["queued", "preparing", "processing", "front_rmbg processing", "front_rmbg succeeded", "succeeded"]


def test_sixty_clients_that_wait_at_once_all_get_their_own_result(api: Api) -> None:
    def send(number: int) -> tuple[int, dict[str, Any]]:
        reply = api.process(picture(300 + number, 40 + number, 30), params={"wait": "60"})
        return reply.status_code, reply.json()

    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(send, number) for number in range(60)]
        eventually(lambda: api.server.waits() >= 10)
        assert requests.get(f"{api.url}/live", timeout=5).status_code == 200
        replies = [future.result(90) for future in waiting]
    for number, (status, body) in enumerate(replies):
        assert (status, body["status"]) == (200, "succeeded")
        assert body["cells"]["front_rmbg"]["width"] == 40 + number
    assert len({body["job_id"] for _, body in replies}) == 60


def test_one_key_sent_twenty_times_at_once_makes_one_job(api: Api) -> None:
    headers = {"Idempotency-Key": "order-1"}
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: api.process(picture(34), headers=headers), range(20)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["job_id"] for reply in replies}) == 1
    assert passes(api.service, "rmbg") == 1


def test_a_client_that_does_not_wait_is_answered_while_the_device_is_held(api: Api) -> None:
    (api.service.gate / "hold-rmbg").touch()
    replies = [api.process(picture(400 + n), headers={"Prefer": "respond-async"}) for n in range(20)]
    assert {reply.status_code for reply in replies} == {202}
    assert len({reply.json()["job_id"] for reply in replies}) == 20
    (api.service.gate / "hold-rmbg").unlink()
    for reply in replies:
        assert api.service.wait(reply.json()["job_id"]).status == JobStatus.SUCCEEDED


def test_a_server_told_to_stop_ends_its_streams_at_once(settings: Settings, store: Store, tmp_path: Path) -> None:
    sources = {"front": Source(kind="url", url="https://example.com/front.png")}
    job = new_job(job_id=new_job_id(), client_id=7, sources=sources, models=("rmbg",))  # type: ignore[arg-type]
    store.create(job)
    server = Server(settings, tmp_path / "api.log")
    try:
        eventually(server.is_live, 60)
        with requests.get(f"{server.url}/jobs/{job.job_id}/events", stream=True, timeout=60) as reply:
            lines = reply.iter_lines(chunk_size=1)
            assert next(lines) == b"retry: 2000"
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            list(lines)  # ends, whole
            assert server.process.wait(40) == 0, server.log
            assert time.monotonic() - began < 30, "the grace time of 60 s was used up"
    finally:
        server.close()
