"""A real Celery worker process on a real Redis: jobs go in by the store and one message, PNGs come out."""

import io
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from PIL import Image

from shared.jobs import CellStatus, Job, JobStatus, Source, new_job, new_job_id
from shared.messages import make_celery, send_plan
from shared.settings import Settings, load_settings
from shared.storage import FolderStorage
from shared.store import Store
from tests.picture_files import bomb_png
from tests.processes import Process, python, wait_for
from tests.redis_server import RedisServer
from tests.tiny_worker import INPUT_SIZE, paint
from worker.images import decode, network_input

#: A side's picture: the bytes of an upload, or a URL.
Sides = Mapping[str, bytes | str]


def picture(seed: int, width: int = 90, height: int = 70) -> bytes:
    """A PNG of large random colour blocks, different for every seed."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Service:
    """The worker's side of the service, driven as the API drives it."""

    def __init__(self, settings: Settings, store: Store, folder: Path) -> None:
        self.settings, self.store, self.folder = settings, store, folder
        self.storage = FolderStorage(settings.outputs_dir, settings.base_url)
        self.gate = folder / "gate"
        self.gate.mkdir()
        self._celery = make_celery(settings, "test")
        self._started: list[Process] = []

    def start_worker(self, **settings: str) -> Process:
        env = {
            **settings,
            "REDIS_URL": self.settings.redis_url.get_secret_value(),
            "OUTPUTS_DIR": str(self.settings.outputs_dir),
            "BASE_URL": self.settings.base_url,
            "ALLOW_PRIVATE_SOURCES": "127.0.0.1",
            "TINY_GATE": str(self.gate),
        }
        worker = python("worker", "-m", "tests.tiny_worker", env=env, log_dir=self.folder / "logs")
        self._started.append(worker)
        wait_for("the worker", lambda: any(w["status"] == "ready" for w in self.store.workers()), worker)
        return worker

    def submit(
        self,
        sides: Sides,
        models: tuple[str, ...] = ("rmbg", "birefnet"),
        options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> str:
        """Create a job of uploaded bytes or URLs and send its message; `fields` are rarer ones of the record."""
        job_id = new_job_id()
        sources = {}
        for side, value in sides.items():
            if isinstance(value, bytes):
                path = self.storage.write_work(job_id, f"{side}.upload", value)
                sources[side] = Source(kind="file", path=path)
            else:
                sources[side] = Source(kind="url", url=value)
        job = new_job(
            job_id=job_id,
            client_id=7,
            sources=sources,  # type: ignore[arg-type]
            models=models,
            options=options,
            **fields,
        )
        self.store.create(job)
        self.send(job_id)
        return job_id

    def send(self, job_id: str) -> None:
        send_plan(self._celery, job_id, "req-1")

    def wait(self, job_id: str, timeout_s: float = 60) -> Job:
        job = self.store.wait_final(job_id, timeout_s)
        assert job.is_final, f"{job}\n" + "\n".join(process.log[-6000:] for process in self._started)
        return job

    def png(self, job: Job, name: str) -> np.ndarray[Any, Any]:
        url = job.cells[name].url
        assert url is not None
        with self.storage.open_output(url.rpartition("/")[2]) as file:
            return np.asarray(Image.open(file))

    def final_events(self, job_id: str) -> list[dict[str, Any]]:
        return [event for _, event in self.store.events(job_id, "0-0", 0) if event.get("final")]

    def close(self) -> None:
        for process in self._started:
            process.kill()


class Answered:
    """Sends one picture with options and gives back the finished job."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __call__(self, **options: Any) -> Job:
        return self.send(picture(21, 200, 160), **options)

    def send(self, data: bytes, models: tuple[str, ...] = ("rmbg", "birefnet"), **options: Any) -> Job:
        return self._service.wait(self._service.submit({"front": data}, models, options))

    def open(self, url: str | None) -> Image.Image:
        assert url is not None
        with self._service.storage.open_output(url.rpartition("/")[2]) as file:
            image = Image.open(file)
            image.load()
            return image


@pytest.fixture
def service(settings: Settings, store: Store, tmp_path: Path) -> Iterator[Service]:
    service = Service(settings, store, tmp_path)
    yield service
    service.close()


@pytest.fixture
def worker(service: Service) -> Process:
    return service.start_worker()


def expected_alpha(data: bytes, model: str) -> np.ndarray[Any, Any]:
    """What the tiny engine paints for a picture, in the network's square."""
    x = network_input(decode(data, pixel_limit=10**8), INPUT_SIZE, torch.device("cpu"))
    return paint(model, x)[0].numpy()


def assert_is_own(png: np.ndarray[Any, Any], data: bytes, model: str) -> None:
    """The cutout is this picture's, through this model."""
    original = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert png.shape == (*original.shape[:2], 4)
    small = Image.fromarray(png[..., 3]).resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BOX)
    expected = expected_alpha(data, model)
    assert np.abs(np.asarray(small) / 255 - expected).mean() < 0.12
    solid = png[..., 3] == 255
    assert (png[..., :3][solid] == original[solid]).all()
    assert not png[png[..., 3] == 0].any()


@pytest.mark.usefixtures("worker")
class TestAWorker:
    def test_it_delivers_every_cell_of_its_own_picture(self, service: Service) -> None:
        sides = {"front": picture(1), "back": picture(2, 120, 44)}
        job = service.wait(service.submit(sides))
        assert job.status == JobStatus.SUCCEEDED
        assert job.result is not None
        assert list(job.result)[:5] == ["id", "front_rmbg", "front_birefnet", "back_rmbg", "back_birefnet"]
        assert job.result["id"] == 7
        for name, cell in job.cells.items():
            side, model = name.split("_")
            assert cell.status == CellStatus.SUCCEEDED
            assert job.result[name] == cell.url
            assert cell.bytes == service.storage.path(str(cell.url).rpartition("/")[2]).stat().st_size
            assert_is_own(service.png(job, name), sides[side], model)
        assert len(service.final_events(job.job_id)) == 1

    def test_many_jobs_at_once_each_get_their_own_pictures(self, service: Service) -> None:
        jobs = {
            service.submit({"front": picture(100 + i, 60 + i, 50)}): picture(100 + i, 60 + i, 50) for i in range(20)
        }
        for job_id, data in jobs.items():
            job = service.wait(job_id)
            assert job.status == JobStatus.SUCCEEDED
            for model in ("rmbg", "birefnet"):
                assert_is_own(service.png(job, f"front_{model}"), data, model)

    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            pytest.param(b"just some text, named .png", "source_not_an_image", id="text"),
            pytest.param(picture(3)[:200], "source_not_an_image", id="truncated"),
            pytest.param(bomb_png(), "source_too_large", id="bomb"),
            pytest.param("http://127.0.0.1:1/none.png", "source_unreachable", id="unreachable"),
            pytest.param("http://10.1.2.3/private.png", "source_address_forbidden", id="private"),
        ],
    )
    def test_one_bad_side_does_not_cost_the_other(self, service: Service, bad: bytes | str, code: str) -> None:
        job = service.wait(service.submit({"front": bad, "back": picture(4)}))
        assert job.status == JobStatus.PARTIAL
        assert job.result is not None
        for model in ("rmbg", "birefnet"):
            assert job.result[f"front_{model}"] is None
            assert job.cells[f"front_{model}"].error["code"] == code  # type: ignore[index]
            assert_is_own(service.png(job, f"back_{model}"), picture(4), model)

    def test_a_job_without_any_good_side_fails_with_the_reason(self, service: Service) -> None:
        job = service.wait(service.submit({"front": b"nothing"}))
        assert job.status == JobStatus.FAILED
        assert job.error is not None
        assert job.error["code"] == "source_not_an_image"
        assert len(service.final_events(job.job_id)) == 1

    def test_a_failing_model_does_not_cost_the_other(self, service: Service) -> None:
        (service.gate / "break-birefnet").touch()
        job = service.wait(service.submit({"front": picture(5), "back": picture(6)}))
        assert job.status == JobStatus.PARTIAL
        assert job.cells["front_rmbg"].status == job.cells["back_rmbg"].status == CellStatus.SUCCEEDED
        assert job.cells["back_birefnet"].error["code"] == "inference_failed"  # type: ignore[index]

    def test_a_message_delivered_twice_ends_the_job_once(self, service: Service) -> None:
        (service.gate / "hold-rmbg").touch()
        job_id = service.submit({"front": picture(8)})
        service.send(job_id)
        wait_for("a cell", (service.gate / "entered-rmbg").exists)
        (service.gate / "hold-rmbg").unlink()
        assert service.wait(job_id).status == JobStatus.SUCCEEDED
        service.wait(service.submit({"front": picture(9)}))  # whatever the second delivery does is over by now
        assert len(service.final_events(job_id)) == 1

    def test_jobs_leave_no_subscriptions_in_redis(self, service: Service, redis_server: RedisServer) -> None:
        for seed in range(3):
            service.wait(service.submit({"front": picture(40 + seed)}))
        with redis.Redis(port=redis_server.port) as client:
            # Fan-out channels of the worker's own remote control are few and do not grow.
            assert [name for name in client.pubsub_channels() if b"celery-task-meta" in name] == []

    def test_a_finished_job_leaves_only_its_cutouts_and_small_copies(self, service: Service) -> None:
        job = service.wait(service.submit({"front": picture(10)}))
        outputs = service.settings.outputs_dir
        small = ["front_birefnet-alpha.npy", "front_rmbg-alpha.npy"]
        wait_for("the clean-up", lambda: service.storage.work_files(job.job_id) == small)
        assert sorted(p.name for p in outputs.iterdir() if p.is_file()) == sorted(
            str(cell.url).rpartition("/")[2] for cell in job.cells.values()
        )


def test_a_job_whose_worker_is_killed_in_mid_forward_is_finished_by_the_next(service: Service) -> None:
    """Given a cell in its forward pass, when the worker gets kill -9 and another starts, then the job still ends."""
    worker = service.start_worker()
    (service.gate / "hold-birefnet").touch()
    sides = {"front": picture(11), "back": picture(12)}
    job_id = service.submit(sides)
    wait_for("a forward pass", (service.gate / "entered-birefnet").exists, worker)
    worker.kill()
    assert not service.store.get(job_id).is_final
    (service.gate / "hold-birefnet").unlink()

    service.start_worker()
    job = service.wait(job_id)
    assert job.status == JobStatus.SUCCEEDED
    for name in job.cells:
        side, model = name.split("_")
        assert_is_own(service.png(job, name), sides[side], model)
    assert len(service.final_events(job_id)) == 1


def test_a_redis_that_is_away_for_seconds_costs_no_finished_cell(tmp_path: Path) -> None:
    """Given cells in mid-forward, when Redis stops, they end, and it comes back, then the job succeeds, once."""
    with RedisServer(persist=True) as server:
        settings = load_settings(redis_url=server.url, outputs_dir=tmp_path / "outputs", base_url="http://x.test")
        store = Store.from_settings(settings)
        service = Service(settings, store, tmp_path)
        try:
            worker = service.start_worker()
            (service.gate / "hold-birefnet").touch()
            job_id = service.submit({"front": picture(15)})
            wait_for("a forward pass", (service.gate / "entered-birefnet").exists, worker)
            server.stop()
            (service.gate / "hold-birefnet").unlink()
            wait_for("the outage to be noticed", lambda: "redis_away" in worker.log, worker)
            server.start()
            if worker.popen.poll() is not None:  # its supervisor's part
                service.start_worker()
            deadline = time.monotonic() + 60
            while not store.get(job_id).is_final and time.monotonic() < deadline:
                if worker.popen.poll() is not None:
                    worker = service.start_worker()
                time.sleep(0.1)
            assert store.get(job_id).status == JobStatus.SUCCEEDED, worker.log[-6000:]
            assert len(service.final_events(job_id)) == 1
        finally:
            service.close()
            store.close()


def test_a_worker_told_to_stop_finishes_what_it_has_begun(service: Service) -> None:
    worker = service.start_worker()
    (service.gate / "hold-rmbg").touch()
    job_id = service.submit({"front": picture(13)}, models=("rmbg",))
    wait_for("a forward pass", (service.gate / "entered-rmbg").exists, worker)
    worker.popen.terminate()
    wait_for("draining", lambda: any(w["status"] == "draining" for w in service.store.workers()), worker)
    (service.gate / "hold-rmbg").unlink()
    assert worker.popen.wait(30) == 0
    # Its cell is done; what came after it is with the next worker.
    service.start_worker()
    assert service.wait(job_id).status == JobStatus.SUCCEEDED


def test_a_worker_whose_grace_is_over_leaves_its_work_to_the_next(service: Service) -> None:
    worker = service.start_worker(SHUTDOWN_GRACE_S="1")
    (service.gate / "hold-rmbg").touch()
    job_id = service.submit({"front": picture(14)}, models=("rmbg",))
    wait_for("a forward pass", (service.gate / "entered-rmbg").exists, worker)
    assert worker.terminate() == 1
    assert "shutdown_grace_over" in worker.log
    (service.gate / "hold-rmbg").unlink()
    service.start_worker()
    assert service.wait(job_id).status == JobStatus.SUCCEEDED


def test_a_worker_whose_device_fails_says_so_gives_every_cell_an_outcome_and_ends(service: Service) -> None:
    """Given cells that wait behind a pass, when the device is lost in it, then all end, and a new worker goes on."""
    worker = service.start_worker(MAX_BATCH="2")
    (service.gate / "hold-rmbg").touch()
    (service.gate / "kill-rmbg").touch()
    jobs = [service.submit({"front": picture(50 + seed)}) for seed in range(3)]
    wait_for("a forward pass", (service.gate / "entered-rmbg").exists, worker)
    (service.gate / "hold-rmbg").unlink()
    assert worker.popen.wait(30) == 1
    assert "device_failed" in worker.log
    (report,) = service.store.workers()
    assert report["status"] == "failed"
    assert "told to fail" in report["models"]["birefnet"]["error"]

    (service.gate / "kill-rmbg").unlink()
    service.start_worker()
    outcomes = [cell for job_id in jobs for cell in service.wait(job_id).cells.values()]
    codes = [cell.error["code"] if cell.error else "none" for cell in outcomes]
    assert "device_failed" in codes
    assert set(codes) <= {"none", "device_failed"}
    assert service.wait(service.submit({"front": picture(60)})).status == JobStatus.SUCCEEDED


def test_a_worker_whose_device_hangs_says_so_and_ends(service: Service) -> None:
    worker = service.start_worker(DEVICE_TIMEOUT_S="1")
    (service.gate / "hold-rmbg").touch()
    job_id = service.submit({"front": picture(70)}, models=("rmbg",))
    assert worker.popen.wait(30) == 1
    (report,) = service.store.workers()
    assert report["status"] == "failed"
    assert "not answered for 1 s" in report["models"]["rmbg"]["error"]
    (service.gate / "hold-rmbg").unlink()
    service.start_worker()
    (cell,) = service.wait(job_id).cells.values()
    assert cell.error is not None
    assert cell.error["code"] == "device_failed"


def test_a_worker_reports_its_memory_and_what_waits_for_its_device(service: Service) -> None:
    worker = service.start_worker()
    (service.gate / "hold-rmbg").touch()
    job_id = service.submit({"front": picture(16), "back": picture(17)}, models=("rmbg",))
    wait_for("a waiting picture", lambda: service.store.workers()[0]["device_waiting"] == 1, worker)
    memory = service.store.workers()[0]["memory"]
    assert 50e6 < memory["resident_bytes"] <= memory["resident_peak_bytes"]
    assert memory["device_bytes"] is None
    (service.gate / "hold-rmbg").unlink()
    service.wait(job_id)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a machine with cores to choose")
def test_the_threads_that_work_on_jobs_share_a_core_and_the_device_has_them_all(service: Service) -> None:
    core = max(os.sched_getaffinity(0))
    worker = service.start_worker(WORKER_CORE=str(core))
    service.wait(service.submit({"front": picture(1, 300, 200)}))
    pid = str(worker.popen.pid)
    tasks = {status.parent.name: status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status")}
    allowed = {name: re.findall(r"Cpus_allowed_list:\s*(\S+)", text)[0] for name, text in tasks.items()}
    assert allowed[pid] == str(core)  # the thread that takes the messages
    on_the_core = [name for name, where in allowed.items() if where == str(core)]
    assert len(on_the_core) > 2  # and at least those that planned the job and computed its cells
    assert len(on_the_core) < len(allowed)  # but not the device's


def test_missing_model_files_stop_the_worker_with_what_to_run(service: Service, tmp_path: Path) -> None:
    env = {
        "REDIS_URL": service.settings.redis_url.get_secret_value(),
        "MODELS_DIR": str(tmp_path / "empty"),
        "MODEL_PROFILE": "full",
    }
    with python("worker", "-m", "worker", env=env, log_dir=tmp_path) as worker:
        assert worker.popen.wait(60) == 1
        assert "FATAL ERROR: Model files not found" in worker.log
        assert "make download-models" in worker.log
        assert "Traceback" not in worker.log


@pytest.fixture(scope="module")
def answered(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answered]:
    folder = tmp_path_factory.mktemp("options")
    settings = load_settings(redis_url=redis_server.url, outputs_dir=folder / "outputs", base_url="http://x.test")
    store = Store.from_settings(settings)
    service = Service(settings, store, folder)
    service.start_worker()
    yield Answered(service)
    service.close()
    store.close()


class TestOptions:
    """What a job's options add, through the real worker."""

    def test_print_files_have_the_canvas_and_resolution_asked_for(self, answered: Answered) -> None:
        job = answered(print={"canvas": "300x360", "dpi": 150, "alpha": "hard", "underbase": True, "margin_px": 10})
        for cell in job.cells.values():
            image = answered.open(cell.files["print"])
            assert (image.size, image.mode) == ((300, 360), "RGBA")
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            assert set(np.unique(np.asarray(image)[..., 3])) <= {0, 255}
            assert answered.open(cell.files["underbase"]).size == (300, 360)
            assert cell.print is not None
            assert cell.print["upscaled"] is False
            assert cell.print["scale"] <= 1

    @pytest.mark.slow
    def test_24_megapixel_pictures_go_in_and_come_out(self, answered: Answered) -> None:
        job = answered.send(picture(22, 4500, 5400), models=("rmbg",), print={"alpha": "hard"})
        (cell,) = job.cells.values()
        assert (cell.width, cell.height) == (4500, 5400)
        assert answered.open(cell.url).size == (4500, 5400)
        assert answered.open(cell.files["print"]).size == (4500, 5400)

    def test_every_cell_has_its_preflight_and_every_side_its_opinion(self, answered: Answered) -> None:
        job = answered()
        assert all(cell.preflight is not None and cell.preflight["checks"] for cell in job.cells.values())
        assert all(not cell.files for cell in job.cells.values())
        assert job.result is not None
        assert set(job.result["sides"]) == {"front"}
        opinion = job.result["sides"]["front"]
        assert opinion["recommended"] in ("rmbg", "birefnet")
        assert 0 <= opinion["agreement"] <= 1

    def test_proofs_and_a_contact_sheet_are_small_webp_files(self, answered: Answered) -> None:
        job = answered(proofs=True, proof_background="#2040a0")
        for cell in job.cells.values():
            assert set(cell.files) == {"proof_black", "proof_white", "proof_heather", "proof_colour", "thumbnail"}
            for url in cell.files.values():
                assert answered.open(url).format == "WEBP"
        assert job.result is not None
        assert answered.open(job.result["contact_sheet"]).format == "WEBP"

    def test_a_mask_is_the_alpha_of_the_cutout(self, answered: Answered) -> None:
        cutout = np.asarray(answered.open(answered().cells["front_rmbg"].url))
        mask = answered.open(answered(output="mask").cells["front_rmbg"].url)
        assert mask.mode == "L"
        assert (np.asarray(mask) == cutout[..., 3]).all()

    def test_a_background_flattens_the_cutout(self, answered: Answered) -> None:
        cutout = np.asarray(answered.open(answered().cells["front_rmbg"].url))
        flat = answered.open(answered(background="#ff0000").cells["front_rmbg"].url)
        assert flat.mode == "RGB"
        pixels = np.asarray(flat)
        assert (pixels[cutout[..., 3] == 0] == (255, 0, 0)).all()
        assert (pixels[cutout[..., 3] == 255] == cutout[cutout[..., 3] == 255][:, :3]).all()

    def test_webp_results_are_lossless(self, answered: Answered) -> None:
        png = np.asarray(answered.open(answered().cells["front_rmbg"].url))
        webp = answered.open(answered(format="webp").cells["front_rmbg"].url)
        assert webp.format == "WEBP"
        visible = png[..., 3] > 0
        assert (np.asarray(webp)[visible] == png[visible]).all()

    @pytest.mark.parametrize("options", [{"detail": "high"}, {"holes": "auto"}, {"edges": "raw"}])
    def test_other_ways_of_cutting_deliver_every_cell(self, answered: Answered, options: dict[str, str]) -> None:
        assert answered(**options).status == JobStatus.SUCCEEDED
