"""The steps of jobs as plain calls, on a real Redis and a real folder: what is computed, and what is taken over."""

import io
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import structlog
import torch
from celery import chord
from kombu.exceptions import OperationalError
from PIL import Image
from torch import Tensor

from shared.jobs import CellStatus, Job, JobStatus, Source, new_job, new_job_id
from shared.logs import bind_context
from shared.messages import ASSEMBLE, CELL, PLAN, make_celery
from shared.settings import Settings
from shared.storage import FolderStorage, name_of
from shared.store import Store
from tests.redis_server import RedisServer
from tests.tiny_worker import TinyEngine
from worker import tasks as worker_tasks
from worker.crashes import CrashGuard
from worker.device import DeviceQueue, batch_limits
from worker.pipeline import CANVAS_MARK, Pipeline
from worker.result_cache import _LIBRARIES
from worker.tasks import register_tasks

ROOT = Path(__file__).parents[2]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class CountingEngine(TinyEngine):
    """Says how often it was used; `during` is called in mid-pass."""

    def __init__(self, name: str) -> None:
        super().__init__(name, None)
        self.passes = 0
        self.during: Callable[[], None] = lambda: None

    def masks(self, batch: Tensor) -> Tensor:
        self.passes += 1
        self.during()
        return super().masks(batch)


class Worker:
    """A pipeline and the way from a job to its end, without Celery."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.storage = FolderStorage(settings.outputs_dir, settings.base_url)
        self.engines = {name: CountingEngine(name) for name in settings.models}
        self.device = DeviceQueue(self.engines, batch_limits(settings, "cpu"))
        self.pipeline = Pipeline(settings, store, self.storage, self.engines, self.device)

    @property
    def passes(self) -> dict[str, int]:
        return {name: engine.passes for name, engine in self.engines.items()}

    def create(self, models: tuple[str, ...] = ("rmbg", "birefnet"), *, front: int | None = None,
               back: int | None = None, **fields: Any) -> str:  # fmt: skip
        job_id = new_job_id()
        sources = {}
        for side, seed in {"front": front, "back": back}.items():
            if seed is not None:
                path = self.storage.write_work(job_id, f"{side}.upload", picture(seed))
                sources[side] = Source(kind="file", path=path)
        job = new_job(job_id=job_id, client_id=7, sources=sources, models=models, **fields)  # type: ignore[arg-type]
        self.store.create(job)
        return job_id

    def run(self, job_id: str) -> Job:
        for side, model in self.pipeline.prepare(job_id) or []:
            self.pipeline.cell(job_id, side, model)
        self.pipeline.assemble(job_id)
        return self.store.get(job_id)

    def do(self, *arguments: Any, **fields: Any) -> Job:
        return self.run(self.create(*arguments, **fields))

    def pixels(self, job: Job, name: str) -> bytes:
        return self.storage.path(name_of(str(job.cells[name].url))).read_bytes()


@pytest.fixture
def worker(settings: Settings, store: Store) -> Iterator[Worker]:
    worker = Worker(settings, store)
    with worker.device:
        yield worker


# --- the result cache -------------------------------------------------------------------------------------------------


def test_the_same_picture_is_not_computed_twice(worker: Worker) -> None:
    """Also not as the other side, and with all that belongs to a cell: proofs, preflight, the models' opinions."""
    first = worker.do(front=1, back=2, options={"proofs": True})
    assert worker.passes == {"rmbg": 2, "birefnet": 2}
    again = worker.do(back=1, options={"proofs": True})
    assert worker.passes == {"rmbg": 2, "birefnet": 2}
    assert {name: cell.cached for name, cell in again.cells.items()} == {"back_rmbg": True, "back_birefnet": True}
    assert not any(cell.cached for cell in first.cells.values())
    for model in ("rmbg", "birefnet"):
        cell = again.cells[f"back_{model}"]
        assert again.job_id in str(cell.url)
        assert worker.pixels(again, f"back_{model}") == worker.pixels(first, f"front_{model}")
        assert cell.preflight == first.cells[f"front_{model}"].preflight
        assert cell.files.keys() == first.cells[f"front_{model}"].files.keys()
        assert all(worker.storage.path(name_of(url)).is_file() for url in cell.files.values())
    assert first.result is not None
    assert again.result is not None
    assert again.result["sides"]["back"] == first.result["sides"]["front"]
    assert worker.storage.path(name_of(again.result["contact_sheet"])).is_file()


def test_an_entry_points_at_the_newest_copy(worker: Worker) -> None:
    first = worker.do(front=1)
    worker.do(front=1)
    worker.storage.remove_outputs(first.job_id)
    worker.storage.remove_work(first.job_id)
    third = worker.do(front=1)
    assert all(cell.cached for cell in third.cells.values())


@pytest.mark.parametrize("gone", ["output", "work"])
def test_an_entry_dies_with_its_files(worker: Worker, gone: str) -> None:
    first = worker.do(("rmbg",), front=1)
    remove = worker.storage.remove_outputs if gone == "output" else worker.storage.remove_work
    remove(first.job_id)
    job = worker.do(("rmbg",), front=1)
    assert (job.status, job.cells["front_rmbg"].cached) == (JobStatus.SUCCEEDED, False)
    assert worker.pixels(job, "front_rmbg")
    assert worker.do(("rmbg",), front=1).cells["front_rmbg"].cached is True


@pytest.mark.parametrize(
    "change",
    [
        {"front": 2},
        {"options": {"edges": "raw"}},
        {"options": {"print": {"canvas": "50x60"}}},
        {"caller": "another"},
        {"use_cache": False},
    ],
    ids=str,
)
def test_a_cell_that_differs_in_anything_is_computed(worker: Worker, change: dict[str, Any]) -> None:
    worker.do(front=1)
    job = worker.do(**{"front": 1, **change})
    assert not any(cell.cached for cell in job.cells.values())
    assert worker.passes == {"rmbg": 2, "birefnet": 2}


def test_other_weights_or_another_precision_make_another_cell(worker: Worker) -> None:
    worker.do(("rmbg",), front=1)
    worker.engines["rmbg"].weights_id = "trained again"
    assert worker.do(("rmbg",), front=1).cells["front_rmbg"].cached is False
    worker.engines["rmbg"].dtype = torch.float64
    assert worker.do(("rmbg",), front=1).cells["front_rmbg"].cached is False
    assert worker.do(("rmbg",), front=1).cells["front_rmbg"].cached is True


def test_other_code_makes_another_cell(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.do(("rmbg",), front=1)
    monkeypatch.setattr("worker.result_cache.code_version", lambda: "after an upgrade")
    assert worker.do(("rmbg",), front=1).cells["front_rmbg"].cached is False


def test_the_version_of_every_library_that_touches_pixels_is_part_of_a_cell() -> None:
    files = [path for folder in ("images", "nets") for path in (ROOT / "worker" / folder).rglob("*.py")]
    source = "\n".join(path.read_text() for path in files)
    modules = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE)) - sys.stdlib_module_names
    # Ours, logs, weights (known by their own digest), and deflate, which gives back what it was given.
    modules -= {"worker", "shared", "structlog", "safetensors", "isal"}
    installed = packages_distributions()
    names = {name.lower() for module in modules for name in installed.get(module, [module])}
    assert {"torch", "simplejpeg"} <= names == set(_LIBRARIES)


def test_which_models_were_asked_for_does_not_matter_to_a_cell(worker: Worker) -> None:
    worker.do(("rmbg",), front=1, options={"models": ["rmbg"]})
    job = worker.do(front=1)
    assert {name: cell.cached for name, cell in job.cells.items()} == {"front_rmbg": True, "front_birefnet": False}


def test_a_cell_that_was_done_since_its_job_was_prepared_is_taken_over(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pipeline._ASKED_AGAIN_AFTER_S", 0.0)
    first, second = worker.create(("rmbg",), front=1), worker.create(("rmbg",), front=1)
    assert worker.pipeline.prepare(first) == worker.pipeline.prepare(second) == [("front", "rmbg")]
    for job_id in (first, second):
        worker.pipeline.cell(job_id, "front", "rmbg")
    assert worker.store.get(second).cells["front_rmbg"].cached is True


def test_a_failed_cell_is_not_kept(worker: Worker) -> None:
    def fail() -> None:
        raise RuntimeError("the device is gone")

    worker.engines["rmbg"].during = fail
    assert worker.do(("rmbg",), front=1).status == JobStatus.FAILED
    worker.engines["rmbg"].during = lambda: None
    assert worker.do(("rmbg",), front=1).cells["front_rmbg"].cached is False


def test_a_model_that_is_gone_costs_its_own_cells_and_says_so(worker: Worker) -> None:
    job_id = worker.create(front=1)
    del worker.engines["birefnet"]  # MODELS was changed and the worker started again while the job waited
    job = worker.run(job_id)
    assert (job.status, job.cells["front_rmbg"].status) == (JobStatus.PARTIAL, CellStatus.SUCCEEDED)
    error = job.cells["front_birefnet"].error
    assert error is not None
    assert error["code"] == "invalid_request"
    assert "birefnet" in error["detail"]


def test_a_cache_that_is_off_keeps_nothing(settings: Settings, store: Store) -> None:
    worker = Worker(settings.model_copy(update={"result_cache_ttl_s": 0}), store)
    with worker.device:
        job = worker.do(("rmbg",), front=1)
        assert worker.storage.work_files(job.job_id) == []
        assert worker.do(("rmbg",), front=1).cells["front_rmbg"].cached is False


# --- the pace ---------------------------------------------------------------------------------------------------------


def cut_out_art() -> bytes:
    """A ring: art that comes with its own alpha."""
    y, x = np.mgrid[-100:100, -100:100]
    radius = np.hypot(x, y)
    pixels = np.full((200, 200, 4), 90, np.uint8)
    pixels[..., 3] = np.where((radius > 50) & (radius < 80), 255, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_cells_that_ran_no_model_are_no_measure_of_those_that_will(worker: Worker) -> None:
    job_id = worker.create(front=1)
    worker.storage.write_work(job_id, "front.upload", cut_out_art())
    job = worker.run(job_id)
    assert (job.status, {cell.own_alpha for cell in job.cells.values()}) == (JobStatus.SUCCEEDED, {True})
    assert worker.passes == {"rmbg": 0, "birefnet": 0}
    assert worker.store.pace.eta_s(1, 2) is None
    worker.do(front=1)
    assert worker.store.pace.eta_s(1, 2) is not None
    with_both = worker.create(front=2, back=3)
    worker.storage.write_work(with_both, "back.upload", cut_out_art())
    worker.run(with_both)
    with redis.Redis.from_url(worker.settings.redis_url.get_secret_value(), decode_responses=True) as connection:
        known = {name for name in connection.hkeys("jobs:pace") if name.startswith("service:")}
    assert known == {"service:2"}, "two of its four cells were computed"


# --- jobs that end before their time ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", ["canceled", "deleted"])
def test_a_cell_that_comes_too_late_leaves_no_file(worker: Worker, ended: str) -> None:
    """Given a pass on the device, when its job is canceled or deleted, then what it gives is thrown away."""
    job_id = worker.create(front=1)

    def end() -> None:
        job = worker.store.get(job_id)
        worker.store.cancel(job_id)
        if ended == "deleted":
            worker.store.delete(job)
            worker.storage.remove_work(job_id)

    cells = worker.pipeline.prepare(job_id) or []
    worker.pipeline.cell(job_id, *cells[0])
    worker.engines["birefnet"].during = end
    worker.pipeline.cell(job_id, *cells[1])
    worker.pipeline.assemble(job_id)
    left = sorted(path.name for path in worker.storage.outputs_dir.rglob("*") if path.is_file())
    if ended == "deleted":
        assert left == []
    else:
        assert [name for name in left if name.endswith(".png")] == [f"design_7_{job_id}_front_rmbg.png"]
        assert "front.upload" in left, "kept for a retry"
        assert worker.store.get(job_id).cells["front_rmbg"].status == CellStatus.SUCCEEDED


def test_a_job_canceled_while_it_is_prepared_gets_no_cells(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = worker.create(front=1)
    real = worker.pipeline._prepared.save

    def save(*arguments: Any) -> Any:
        worker.store.cancel(job_id)
        return real(*arguments)

    monkeypatch.setattr(worker.pipeline._prepared, "save", save)
    assert worker.pipeline.prepare(job_id) == []
    assert worker.passes == {"rmbg": 0, "birefnet": 0}


def test_a_cell_taken_over_for_a_job_that_was_just_canceled_leaves_no_file(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.do(("rmbg",), front=1)
    job_id = worker.create(("rmbg",), front=1)
    real = worker.pipeline._cache.find

    def find(*arguments: Any) -> Any:
        found = real(*arguments)
        worker.store.cancel(job_id)
        return found

    monkeypatch.setattr(worker.pipeline._cache, "find", find)
    assert worker.pipeline.prepare(job_id) == []
    assert worker.store.get(job_id).cells["front_rmbg"].status == CellStatus.FAILED
    assert list(worker.storage.outputs_dir.glob(f"design_*_{job_id}_*")) == []


def test_a_job_that_cannot_be_planned_ends_all_the_same(
    worker: Worker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a job whose plan meets a fault of ours, then it fails and nobody waits for it."""

    def find(*_: Any) -> Any:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(worker.pipeline._cache, "find", find)
    job_id = worker.create(front=1)
    app = make_celery(settings, "test")
    register_tasks(app, worker.pipeline, CrashGuard(worker.store, "worker-1", 3))
    app.tasks[PLAN].run(job_id=job_id, request_id="r")
    job = worker.store.get(job_id)
    assert (job.status, (job.error or {})["code"]) == (JobStatus.FAILED, "internal_error")
    app.close()


def test_a_redelivered_cell_does_not_lose_its_file(worker: Worker) -> None:
    job = worker.do(("rmbg",), front=1)
    before = worker.pixels(job, "front_rmbg")
    worker.pipeline.cell(job.job_id, "front", "rmbg")
    worker.pipeline.assemble(job.job_id)
    assert worker.pixels(job, "front_rmbg") == before


def test_what_jobs_cost_is_measured_without_what_was_taken_over(worker: Worker) -> None:
    assert worker.store.pace.eta_s(1, 2) is None
    job = worker.do(front=1)
    assert job.started_at is not None
    assert job.completed_at is not None
    took_s = (job.completed_at - job.started_at).total_seconds()
    measured = worker.store.pace.eta_s(1, 2)
    assert measured == pytest.approx(took_s, abs=0.1)
    worker.do(front=1)
    assert worker.store.pace.eta_s(1, 2) == measured


def test_a_message_that_comes_after_its_record_has_expired_costs_no_output(
    worker: Worker, redis_server: RedisServer
) -> None:
    """A record lives shorter than its files: whoever has their addresses keeps them."""
    job = worker.do(("rmbg",), front=1)
    with redis.Redis(port=redis_server.port) as client:
        client.delete(f"job:{job.job_id}")  # as its lifetime does
    assert worker.pipeline.prepare(job.job_id) == []
    assert worker.pipeline.cell(job.job_id, "front", "rmbg")["error"]["code"] == "job_not_found"
    worker.pipeline.assemble(job.job_id)
    assert worker.pixels(job, "front_rmbg")


def test_what_a_side_logs_has_the_ids_whichever_thread_prepares_it(worker: Worker) -> None:
    job_id = worker.create(front=1, back=2)
    with (
        structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines,
        bind_context(job_id=job_id, request_id="r"),
    ):
        worker.pipeline.prepare(job_id)
    ids = {line["side"]: (line.get("job_id"), line.get("request_id")) for line in lines if "side" in line}
    assert ids == {"front": (job_id, "r"), "back": (job_id, "r")}


@pytest.fixture
def tasks(worker: Worker, settings: Settings) -> Iterator[Any]:
    app = make_celery(settings, "test")
    register_tasks(app, worker.pipeline, CrashGuard(worker.store, "worker-1", 2))
    yield app.tasks
    app.close()


def test_cells_that_redis_does_not_take_at_once_are_sent_again(
    worker: Worker, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a Redis that goes away just when a job's cells are sent, then the plan waits for it."""
    sent: list[str] = []

    class BrokenOnce(chord):  # type: ignore[misc]
        def apply_async(self, *_: Any, **__: Any) -> None:
            sent.append("tried")
            if len(sent) == 1:
                raise OperationalError("Redis is away")

    monkeypatch.setattr(worker_tasks, "OneCommandChord", BrokenOnce)
    job_id = worker.create(("rmbg",), front=1)
    tasks[PLAN].run(job_id=job_id, request_id="r")
    assert sent == ["tried", "tried"]
    assert worker.store.get_mark(job_id, CANVAS_MARK) == "submitted"


@pytest.mark.parametrize("step", ["plan", "cell", "assemble"])
def test_a_job_that_no_worker_survives_ends_whichever_step_it_is_and_keeps_what_it_has(
    worker: Worker, tasks: Any, step: str
) -> None:
    job_id = worker.create(front=1)
    worker.pipeline.prepare(job_id)
    worker.pipeline.cell(job_id, "front", "rmbg")
    for _ in range(2):
        worker.store.under_way.begin("worker-1", job_id, is_alone=True)
        worker.store.under_way.count_crash("worker-1")
    ids = {"job_id": job_id, "request_id": "r"}
    if step == "plan":
        tasks[PLAN].run(**ids)
    elif step == "cell":
        assert tasks[CELL].run(side="front", model="birefnet", **ids) == "worker_crashed"
    else:
        tasks[ASSEMBLE].run([], **ids)
    job = worker.store.get(job_id)
    assert job.status == JobStatus.PARTIAL
    assert job.cells["front_rmbg"].status == CellStatus.SUCCEEDED
    assert (job.cells["front_birefnet"].error or {})["code"] == "worker_crashed"
    assert worker.passes == {"rmbg": 1, "birefnet": 0}
