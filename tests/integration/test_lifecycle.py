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

from shared.jobs import CellStatus, JobStatus, utc_now
from shared.messages import CELL_QUEUE, QUEUE
from shared.settings import Settings
from shared.storage import name_of
from shared.store import Store
from tests.conftest import eventually
from tests.integration.test_api_server import Server
from tests.integration.test_worker import Service, assert_is_own, picture
from tests.processes import Process, wait_for
from tests.redis_server import RedisServer


@pytest.fixture
def service(settings: Settings, store: Store, tmp_path: Path) -> Iterator[Service]:
    service = Service(settings, store, tmp_path)
    yield service
    service.close()


@pytest.fixture
def worker(service: Service) -> Process:
    return service.start_worker()


def passes(service: Service, model: str) -> int:
    """Forward passes that a model has made."""
    count = service.gate / f"passes-{model}"
    return count.stat().st_size if count.exists() else 0


def is_idle(redis_server: RedisServer) -> bool:
    """No message waits and none is being worked on."""
    with redis.Redis(port=redis_server.port) as client:
        return not any(client.llen(name) for name in (QUEUE, CELL_QUEUE)) and not client.hlen("unacked:worker-1")


# --- the worker -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
class TestAWorker:
    def test_a_canceled_job_costs_no_more_device_time_and_keeps_its_finished_cells(
        self, service: Service, redis_server: RedisServer
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
        wait_for("the worker to be idle", lambda: is_idle(redis_server))
        job = service.store.get(job_id)
        assert job.status == JobStatus.CANCELED
        assert_is_own(service.png(job, "front_rmbg"), picture(1), "rmbg")
        assert len(service.final_events(job_id)) == 1
        # Whatever was on the device when the jobs ended is not delivered, and its file is not left behind.
        assert list(service.settings.outputs_dir.glob("design_*birefnet*")) == []
        assert passes(service, "birefnet") == 1

    def test_a_job_canceled_in_the_queue_is_not_even_prepared(self, service: Service, worker: Process) -> None:
        (service.gate / "hold-rmbg").touch()
        busy = [service.submit({"front": picture(n)}, models=("rmbg",)) for n in range(8)]
        wait_for("all threads to be busy", lambda: all(
            service.store.get(job_id).cells["front_rmbg"].status == "processing" for job_id in busy
        ))  # fmt: skip
        job_id = service.submit({"front": picture(50)}, models=("rmbg",))
        assert service.store.queue_position(job_id) == 1
        assert service.store.cancel(job_id)
        (service.gate / "hold-rmbg").unlink()
        for other in busy:
            assert service.wait(other).status == JobStatus.SUCCEEDED
        assert service.storage.work_files(job_id) == ["front.upload"]
        assert worker.popen.poll() is None

    def test_a_job_past_its_deadline_gets_no_device_time(self, service: Service, redis_server: RedisServer) -> None:
        (service.gate / "hold-rmbg").touch()
        first = service.submit({"front": picture(4)}, models=("rmbg",))
        wait_for("a forward pass", (service.gate / "entered-rmbg").exists)
        job_id = service.submit({"front": picture(5)}, ("rmbg",), deadline=utc_now() + timedelta(seconds=0.3))
        # Nobody asks; its one cell waits for the device meanwhile.
        wait_for("the deadline", lambda: service.store.get(job_id).is_final)
        (service.gate / "hold-rmbg").unlink()
        service.wait(first)
        wait_for("the worker to be idle", lambda: is_idle(redis_server))
        job = service.store.get(job_id)
        assert job.status == JobStatus.EXPIRED
        assert job.cells["front_rmbg"].error["code"] == "job_expired"  # type: ignore[index]
        assert passes(service, "rmbg") == 1

    def test_a_job_deleted_in_mid_forward_leaves_no_file(self, service: Service, redis_server: RedisServer) -> None:
        (service.gate / "hold-rmbg").touch()
        job_id = service.submit({"front": picture(6)}, models=("rmbg",))
        wait_for("a forward pass", (service.gate / "entered-rmbg").exists)
        job = service.store.get(job_id)
        service.store.cancel(job_id)
        service.store.delete(job)
        service.storage.remove_work(job_id)
        (service.gate / "hold-rmbg").unlink()
        wait_for("the worker to be idle", lambda: is_idle(redis_server))
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

    def test_what_jobs_cost_is_measured(self, service: Service) -> None:
        assert service.store.pace.eta_s(1, 2) is None
        job = service.wait(service.submit({"front": picture(7)}))
        assert job.started_at is not None
        assert job.completed_at is not None
        took_s = (job.completed_at - job.started_at).total_seconds()
        eta_s = wait_for("the measure", lambda: service.store.pace.eta_s(1, 2))
        assert eta_s == pytest.approx(took_s, abs=0.1)

    # --- the result cache ---
    def test_the_same_picture_is_not_computed_twice(self, service: Service, redis_server: RedisServer) -> None:
        data = picture(8)
        first = service.wait(service.submit({"front": data, "back": picture(9)}, options={"proofs": True}))
        before = passes(service, "rmbg"), passes(service, "birefnet")
        # Its old front is the new back, so the same picture on the other side is found too.
        again = service.wait(service.submit({"back": data}, options={"proofs": True}))
        assert (passes(service, "rmbg"), passes(service, "birefnet")) == before
        assert {name: cell.cached for name, cell in again.cells.items()} == {"back_rmbg": True, "back_birefnet": True}
        assert not any(cell.cached for cell in first.cells.values())
        for model in ("rmbg", "birefnet"):
            cell = again.cells[f"back_{model}"]
            assert again.job_id in str(cell.url)
            assert_is_own(service.png(again, f"back_{model}"), data, model)
            assert cell.preflight == first.cells[f"front_{model}"].preflight
            assert all(service.storage.path(name_of(url)).is_file() for url in cell.files.values())
        assert again.result is not None
        assert first.result is not None
        assert again.result["sides"]["back"] == first.result["sides"]["front"], "the models' opinions are kept too"
        assert again.result["contact_sheet"]
        # The first job's files may go: the entry points at the newest copy.
        service.storage.remove_outputs(first.job_id)
        service.storage.remove_work(first.job_id)
        third = service.wait(service.submit({"front": data}, options={"proofs": True}))
        assert all(cell.cached for cell in third.cells.values())

    @pytest.mark.parametrize(
        "change",
        [{"options": {"edges": "raw"}}, {"use_cache": False}, {"caller": "other"}, {"data": picture(11)}],
        ids=lambda change: next(iter(change)),
    )
    def test_another_picture_option_or_caller_or_a_wish_for_fresh_is_computed(
        self, service: Service, change: dict[str, Any]
    ) -> None:
        service.wait(service.submit({"front": picture(10)}))
        data = change.pop("data", picture(10))
        job = service.wait(service.submit({"front": data}, **change))
        assert not any(cell.cached for cell in job.cells.values())
        assert passes(service, "rmbg") == 2

    def test_which_models_were_asked_for_does_not_matter_to_a_cell(self, service: Service) -> None:
        service.wait(service.submit({"front": picture(12)}, ("rmbg",), options={"models": ["rmbg"]}))
        job = service.wait(service.submit({"front": picture(12)}))
        assert {name: cell.cached for name, cell in job.cells.items()} == {
            "front_rmbg": True,
            "front_birefnet": False,
        }

    @pytest.mark.parametrize("gone", ["output", "work"])
    def test_an_entry_dies_with_its_file(self, service: Service, redis_server: RedisServer, gone: str) -> None:
        first = service.wait(service.submit({"front": picture(13)}, models=("rmbg",)))
        if gone == "output":
            service.storage.remove_outputs(first.job_id)
        else:
            service.storage.remove_work(first.job_id)
        job = service.wait(service.submit({"front": picture(13)}, models=("rmbg",)))
        assert not job.cells["front_rmbg"].cached
        assert_is_own(service.png(job, "front_rmbg"), picture(13), "rmbg")

    def test_a_failed_cell_is_not_kept(self, service: Service) -> None:
        (service.gate / "break-rmbg").touch()
        service.wait(service.submit({"front": picture(14)}, models=("rmbg",)))
        (service.gate / "break-rmbg").unlink()
        job = service.wait(service.submit({"front": picture(14)}, models=("rmbg",)))
        assert (job.status, job.cells["front_rmbg"].cached) == (JobStatus.SUCCEEDED, False)


@pytest.mark.parametrize(
    ("settings_of_the_second", "is_cached"),
    [({}, True), ({"TINY_WEIGHTS": "trained again"}, False), ({"RESULT_CACHE_TTL_S": "0"}, False)],
)
def test_other_weights_are_another_cell(
    service: Service, settings_of_the_second: dict[str, str], is_cached: bool
) -> None:
    worker = service.start_worker()
    service.wait(service.submit({"front": picture(15)}, models=("rmbg",)))
    worker.terminate()
    service.start_worker(**settings_of_the_second)
    job = service.wait(service.submit({"front": picture(15)}, models=("rmbg",)))
    assert job.cells["front_rmbg"].cached is is_cached


# --- the whole --------------------------------------------------------------------------------------------------------


class Api:
    """A real API and a real worker on one Redis."""

    def __init__(self, service: Service, server: Server) -> None:
        self.service, self.server = service, server
        self.url = server.url

    def process(self, data: bytes | None = None, options: str = "{}", **request: Any) -> requests.Response:
        """POST /process with one picture, always the same one unless `data` is another."""
        files = {"front": ("front.png", picture(30) if data is None else data)}
        form = {"id": "1", "options": options}
        return requests.post(f"{self.url}/process", timeout=60, data=form, files=files, **request)

    def get(self, path: str) -> dict[str, Any]:
        reply: dict[str, Any] = requests.get(f"{self.url}{path}", timeout=30).json()
        return reply


@pytest.fixture
def api(service: Service, settings: Settings, tmp_path: Path) -> Iterator[Api]:
    server = Server(settings, tmp_path / "api.log")
    try:
        service.settings = settings.model_copy(update={"base_url": server.url})
        service.start_worker()
        eventually(server.is_live, 60)
        yield Api(service, server)
    finally:
        server.close()


def test_a_failed_cell_is_tried_again_and_the_good_one_is_not(api: Api) -> None:
    (api.service.gate / "break-birefnet").touch()
    first = api.process().json()
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
    api.process()
    assert api.process().json()["cells"]["front_rmbg"]["cached"] is True
    assert api.process(headers={"Cache-Control": "no-cache"}).json()["cells"]["front_rmbg"]["cached"] is False


def test_a_stream_over_the_wire_comes_event_by_event(api: Api) -> None:
    """Given a job held on the device, then what came before is read already: nothing collects events on the way."""
    (api.service.gate / "hold-rmbg").touch()
    job_id = api.process(headers={"Prefer": "respond-async"}, options='{"models": ["rmbg"]}').json()["job_id"]
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
        replies = list(pool.map(lambda _: api.process(headers=headers), range(20)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["job_id"] for reply in replies}) == 1
    assert len(api.get("/jobs")["jobs"]) == 1
    assert passes(api.service, "rmbg") == 1


def test_a_client_that_does_not_wait_is_answered_while_the_device_is_held(api: Api) -> None:
    (api.service.gate / "hold-rmbg").touch()
    replies = [api.process(picture(400 + n), headers={"Prefer": "respond-async"}) for n in range(20)]
    assert {reply.status_code for reply in replies} == {202}
    assert len({reply.json()["job_id"] for reply in replies}) == 20
    (api.service.gate / "hold-rmbg").unlink()
    for reply in replies:
        assert api.service.wait(reply.json()["job_id"]).status == JobStatus.SUCCEEDED


def test_a_server_told_to_stop_ends_its_streams_at_once(api: Api) -> None:
    (api.service.gate / "hold-rmbg").touch()
    job_id = api.process(headers={"Prefer": "respond-async"}).json()["job_id"]
    with requests.get(f"{api.url}/jobs/{job_id}/events", stream=True, timeout=60) as reply:
        lines = reply.iter_lines(chunk_size=1)
        assert next(lines) == b"retry: 2000"
        began = time.monotonic()
        api.server.process.send_signal(signal.SIGTERM)
        list(lines)  # ends, whole
        assert api.server.process.wait(40) == 0, api.server.log
        assert time.monotonic() - began < 30, "the grace time of 60 s was used up"
    assert api.service.store.get(job_id).cells["front_rmbg"].status != CellStatus.FAILED
