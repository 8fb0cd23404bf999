"""Deadlines and old files, on a real Redis and a real folder."""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from shared.errors import JobNotFound
from shared.jobs import Job, JobStatus, Source, new_job, new_job_id, utc_now
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import Store
from tests.conftest import eventually
from tests.redis_server import RedisServer
from worker.sweeper import Sweeper

HOUR = 3600


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"source_ttl_s": HOUR, "result_cache_ttl_s": 2 * HOUR})


@pytest.fixture
def storage(settings: Settings) -> FolderStorage:
    return FolderStorage(settings.outputs_dir, settings.base_url)


@pytest.fixture
def sweeper(settings: Settings, store: Store, storage: FolderStorage) -> Sweeper:
    return Sweeper(settings, store, storage)


def make_job(store: Store, storage: FolderStorage, deadline_s: float | None = None) -> Job:
    job_id = new_job_id()
    for name in ("front.upload", "front.prepared", "front_rmbg-alpha.npy"):
        storage.write_work(job_id, name, b"x")
    deadline = None if deadline_s is None else utc_now() + timedelta(seconds=deadline_s)
    source = Source(kind="file", path=f".work/{job_id}/front.upload")
    job = new_job(job_id=job_id, client_id=7, sources={"front": source}, models=("rmbg",), deadline=deadline)
    store.create(job)
    return job


def end(store: Store, job: Job, status: JobStatus, ago_s: float, redis_server: RedisServer) -> None:
    """End a job, some time ago."""
    for step in (JobStatus.PREPARING, JobStatus.PROCESSING):
        store.transition(job.job_id, step)
    assert store.finish(job.job_id, status)
    with redis.Redis(port=redis_server.port) as client:
        client.hset(f"job:{job.job_id}", "completed_at", (utc_now() - timedelta(seconds=ago_s)).isoformat())


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_jobs_past_their_deadline_expire_and_others_do_not(
    store: Store, storage: FolderStorage, sweeper: Sweeper
) -> None:
    late, early, free = (make_job(store, storage, seconds) for seconds in (-1, 60, None))
    running = make_job(store, storage, -1)
    store.transition(running.job_id, JobStatus.PREPARING)
    assert sweeper.expire_overdue() == 2
    assert store.get(late.job_id).status == store.get(running.job_id).status == JobStatus.EXPIRED
    assert store.get(late.job_id).error["code"] == "job_expired"  # type: ignore[index]
    assert store.get(early.job_id).status == store.get(free.job_id).status == JobStatus.QUEUED
    assert sweeper.expire_overdue() == 0
    assert store.queue_depth() == 2


def test_a_deadline_of_a_job_that_is_over_or_gone_is_forgotten(
    store: Store, storage: FolderStorage, sweeper: Sweeper, redis_server: RedisServer
) -> None:
    done, gone = make_job(store, storage, 60), make_job(store, storage, -1)
    store.cancel(done.job_id)
    with redis.Redis(port=redis_server.port, decode_responses=True) as client:
        client.delete(f"job:{gone.job_id}")  # as its lifetime does
        assert client.zrange("jobs:deadlines", 0, -1) == [gone.job_id]
        assert sweeper.expire_overdue() == 0
        assert client.zcard("jobs:deadlines") == 0
    with pytest.raises(JobNotFound):
        store.get(gone.job_id)


@pytest.mark.parametrize(
    ("status", "ago_s", "left"),
    [
        (JobStatus.SUCCEEDED, 1, ["front_rmbg-alpha.npy"]),
        (JobStatus.PARTIAL, HOUR - 60, ["front.prepared", "front.upload", "front_rmbg-alpha.npy"]),
        (JobStatus.FAILED, HOUR + 60, ["front_rmbg-alpha.npy"]),
        (JobStatus.CANCELED, 2 * HOUR - 60, ["front_rmbg-alpha.npy"]),
        (JobStatus.SUCCEEDED, 2 * HOUR + 60, []),
        (JobStatus.EXPIRED, 2 * HOUR + 60, []),
    ],
)
def test_files_of_a_job_that_ended_go_when_their_time_is_over(
    store: Store,
    storage: FolderStorage,
    sweeper: Sweeper,
    redis_server: RedisServer,
    status: JobStatus,
    ago_s: float,
    left: list[str],
) -> None:
    job = make_job(store, storage)
    end(store, job, status, ago_s, redis_server)
    sweeper.remove_old_files()
    assert storage.work_files(job.job_id) == left
    assert (storage.outputs_dir / ".work" / job.job_id).exists() is bool(left)


def test_files_of_an_open_job_stay_however_old_they_are(store: Store, storage: FolderStorage, sweeper: Sweeper) -> None:
    job = make_job(store, storage)
    age(storage.work_dir(job.job_id), 100 * HOUR)
    sweeper.remove_old_files()
    assert len(storage.work_files(job.job_id)) == 3


def test_a_folder_without_a_job_goes_when_nobody_can_be_writing_it_any_more(
    store: Store, storage: FolderStorage, sweeper: Sweeper
) -> None:
    young, old = new_job_id(), new_job_id()
    for job_id in (young, old):
        storage.write_work(job_id, "front.upload", b"x")
    age(storage.work_dir(old), HOUR + 60)
    sweeper.remove_old_files()
    assert [job_id for job_id, _ in storage.work_folders()] == [young]
    assert store.counters.read()["abandoned"] == {"work": 1}


def test_halves_of_outputs_that_a_killed_process_left_are_removed(storage: FolderStorage, sweeper: Sweeper) -> None:
    names = [".design_1_a_front_rmbg.png.x1.part", ".design_1_a_front_rmbg.png.x2.part", "design_1_a_front_rmbg.png"]
    storage.outputs_dir.mkdir()
    for name in names:
        (storage.outputs_dir / name).write_bytes(b"half")
    for name in names[1:]:
        age(storage.outputs_dir / name, HOUR + 60)
    sweeper.remove_old_files()
    assert sorted(path.name for path in storage.outputs_dir.iterdir()) == [names[0], names[2]]


@pytest.fixture
def running(sweeper: Sweeper) -> Iterator[Sweeper]:
    with sweeper:
        yield sweeper


@pytest.mark.usefixtures("running")
def test_a_running_sweeper_ends_a_job_that_nobody_asks_for(store: Store, storage: FolderStorage) -> None:
    job = make_job(store, storage, 0.2)
    eventually(lambda: store.get(job.job_id).status == JobStatus.EXPIRED)


def test_answers_of_gemini_go_when_they_are_old_though_no_new_one_comes(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    folder = storage.outputs_dir / ".extracted"
    storage.write_hidden(".extracted", f"{'a' * 64}.answer", b"{}\nold")
    storage.write_hidden(".extracted", f"{'b' * 64}.answer", b"{}\nyoung")
    for name in (".half.part", ".writing.part"):
        (folder / name).touch()
    age(folder / f"{'a' * 64}.answer", 2 * HOUR + 60)
    age(folder / ".half.part", 2 * HOUR)
    sweeper = Sweeper(settings.model_copy(update={"extract_cache_ttl_s": 2 * HOUR}), store, storage)
    sweeper.remove_old_files()
    assert sorted(path.name for path in folder.iterdir()) == [".writing.part", f"{'b' * 64}.answer"]
