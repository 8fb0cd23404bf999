"""How long outputs stay, on a real Redis and a real folder, and what a client is told afterwards."""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from flask.testing import FlaskClient

from api.app import create_app
from shared.errors import StoreUnavailable
from shared.jobs import Job, JobStatus, Source, new_job, new_job_id, utc_now
from shared.settings import Settings, load_settings
from shared.storage import FolderStorage, OutputFile
from shared.store import Store
from shared.takeover import take_over
from tests.conftest import assert_problem, succeed
from tests.redis_server import RedisServer, free_port
from worker.retention import Retention
from worker.sweeper import Sweeper

HOUR = 3600


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"output_ttl": HOUR})


@pytest.fixture
def storage(settings: Settings) -> FolderStorage:
    return FolderStorage(settings.outputs_dir, settings.base_url)


def make_job(store: Store, storage: FolderStorage, age_s: float, size: int = 100, *, is_open: bool = False) -> Job:
    """A job of one side with both of its files, that old."""
    source = Source(kind="url", url="https://example.com/front.png")
    job = new_job(job_id=new_job_id(), client_id=7, sources={"front": source}, models=("rmbg", "birefnet"))
    store.create(job)
    for model in job.models:
        name = storage.output_name(7, job.job_id, "front", model)
        storage.write_atomic(name, b"x" * size)
        os.utime(storage.path(name), (time.time() - age_s,) * 2)
    if not is_open:
        succeed(store, job)
    return store.get(job.job_id)


def files_of(storage: FolderStorage, job: Job) -> int:
    return sum(file.job_id == job.job_id for file in storage.outputs())


def sweep(settings: Settings, store: Store, storage: FolderStorage, **changed: int) -> None:
    Retention(settings.model_copy(update=changed), store, storage).sweep()


def test_outputs_go_when_they_are_old_and_the_record_says_so(
    settings: Settings, store: Store, storage: FolderStorage, client: FlaskClient
) -> None:
    old, young = make_job(store, storage, HOUR + 60), make_job(store, storage, HOUR - 60)
    sweep(settings, store, storage)
    assert (files_of(storage, old), files_of(storage, young)) == (0, 2)
    assert store.get(old.job_id).outputs_removed_at is not None
    assert store.get(young.job_id).outputs_removed_at is None
    name = storage.output_name(7, old.job_id, "front", "rmbg")
    assert_problem(client.get(f"/outputs/{name}"), 410, "output_expired")
    body = client.get(f"/jobs/{old.job_id}").json
    assert body is not None
    assert body["outputs_removed_at"] is not None
    assert body["status"] == "succeeded"
    assert body["links"]["outputs"] == {}
    counted = store.counters.read()
    assert (counted["removed_jobs"], counted["removed_bytes"]) == ({"age": 1}, {"age": 200})
    assert (counted["output_bytes"], counted["output_files"]) == ({"": 200}, {"": 2})


def test_the_answer_is_410_also_when_the_record_has_expired_and_404_for_what_never_was(
    settings: Settings, store: Store, storage: FolderStorage, client: FlaskClient, redis_server: RedisServer
) -> None:
    old = make_job(store, storage, HOUR + 60)
    with redis.Redis(port=redis_server.port) as raw:
        raw.delete(f"job:{old.job_id}")  # as its lifetime does
    sweep(settings, store, storage)
    assert files_of(storage, old) == 0
    name = storage.output_name(7, old.job_id, "front", "rmbg")
    assert_problem(client.get(f"/outputs/{name}"), 410, "output_expired")
    other = storage.output_name(7, new_job_id(), "front", "rmbg")
    assert_problem(client.get(f"/outputs/{other}"), 404, "output_not_found")


def test_a_signed_url_of_a_removed_output_is_gone_and_a_bad_signature_still_learns_nothing(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    signed = settings.model_copy(update={"output_url_ttl": HOUR})
    app = create_app(load_settings(**{**signed.model_dump(), "output_url_secret": "s" * 32}))
    old = make_job(store, storage, HOUR + 60)
    client = app.test_client()
    url = client.get(f"/jobs/{old.job_id}").json["cells"]["front_rmbg"]["url"]  # type: ignore[index]
    path = url.removeprefix(settings.base_url)
    with client.get(path) as reply:
        assert reply.data == b"x" * 100
    sweep(settings, store, storage)
    assert_problem(client.get(path), 410, "output_expired")
    assert_problem(client.get(path + "x"), 403, "output_url_invalid")
    app.extensions["service"].store.close()
    app.extensions["service"].celery.close()


def test_a_job_that_is_open_keeps_its_files_however_old_and_many_they_are(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    job = make_job(store, storage, 100 * HOUR, is_open=True)
    sweep(settings, store, storage, output_max_bytes=1)
    assert files_of(storage, job) == 2
    assert store.get(job.job_id).outputs_removed_at is None


def test_past_the_cap_the_oldest_jobs_go_first_and_no_more_than_need_be(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    jobs = [make_job(store, storage, 60 - n, size=100) for n in range(5)]  # 1000 bytes together, the first the oldest
    sweep(settings, store, storage, output_max_bytes=500)
    assert [files_of(storage, job) for job in jobs] == [0, 0, 0, 2, 2]
    assert store.counters.read()["removed_jobs"] == {"size": 3}
    sweep(settings, store, storage, output_max_bytes=500)
    assert [files_of(storage, job) for job in jobs] == [0, 0, 0, 2, 2]


def test_a_job_goes_whole_or_not_at_all(settings: Settings, store: Store, storage: FolderStorage) -> None:
    job = make_job(store, storage, HOUR + 60)
    fresh = storage.output_name(7, job.job_id, "front", "rmbg_print")
    storage.write_atomic(fresh, b"y")
    sweep(settings, store, storage)
    assert files_of(storage, job) == 3, "its youngest file is not old"


def test_files_that_two_jobs_share_count_once_and_live_on_with_the_younger(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    old = make_job(store, storage, HOUR + 60)
    source = Source(kind="url", url="https://example.com/front.png")
    new = new_job(job_id=new_job_id(), client_id=7, sources={"front": source}, models=("rmbg",))
    store.create(new)
    assert take_over(storage, old.cells["front_rmbg"], (old.job_id, "front", "rmbg"), new, "front") is not None
    succeed(store, new)
    sweep(settings, store, storage)
    assert files_of(storage, new) == 1
    assert store.counters.read()["output_bytes"] == {"": 200}  # three names, two files' bytes
    sweep(settings, store, storage, output_ttl=0)
    counted = store.counters.read()
    assert (counted["output_bytes"], counted["output_files"]) == ({"": 200}, {"": 3}), "they are only counted"
    sweep(settings, store, storage, output_max_bytes=150)
    assert files_of(storage, old) == 0
    assert files_of(storage, new) == 1


def test_without_a_limit_nothing_is_removed(settings: Settings, store: Store, storage: FolderStorage) -> None:
    job = make_job(store, storage, 1000 * HOUR)
    sweep(settings, store, storage, output_ttl=0)
    assert files_of(storage, job) == 2


class WatchedStorage(FolderStorage):
    """A folder that counts how many of its outputs' descriptions somebody still has when all were read."""

    held = -1

    def outputs(self) -> Iterator[OutputFile]:
        for file in super().outputs():
            yield file
        del file
        self.held = sum(type(thing) is OutputFile for thing in gc.get_objects())


def test_a_sweep_without_a_limit_keeps_nothing_of_the_files_that_it_counts(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    """Outputs that stay for ever are ever more: a worker that held them all once a minute grew by 1.2 KB a job."""
    for _ in range(4):
        make_job(store, storage, 60)
    watched = WatchedStorage(settings.outputs_dir, settings.base_url)
    sweep(settings, store, watched)
    assert watched.held == 8, "with a limit, any of them may have to go"
    sweep(settings, store, watched, output_ttl=0)
    assert watched.held <= 1
    counted = store.counters.read()
    assert (counted["output_bytes"], counted["output_files"]) == ({"": 800}, {"": 8})


def test_what_is_no_output_is_left_alone(settings: Settings, store: Store, storage: FolderStorage) -> None:
    storage.write_hidden(".extracted", "answer.bin", b"paid for")
    mine = storage.outputs_dir / "notes.txt"
    mine.write_text("the operator's own")
    for path in (mine, storage.outputs_dir / ".extracted" / "answer.bin"):
        os.utime(path, (0, 0))
    sweep(settings, store, storage, output_max_bytes=1)
    assert mine.exists()
    assert (storage.outputs_dir / ".extracted" / "answer.bin").exists()


def test_while_redis_is_away_nothing_is_removed_that_is_not_said_to_be(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    job = make_job(store, storage, HOUR + 60)
    away = Store.from_settings(load_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(StoreUnavailable):
        Retention(settings, away, storage).sweep()
    away.close()
    assert files_of(storage, job) == 2


def test_a_sweep_that_died_half_way_is_finished_by_the_next(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    """Given a job whose record says that its outputs are gone, and one file that a kill left, then that goes too."""
    job = make_job(store, storage, HOUR + 60)
    store.removed_outputs.note([job.job_id], job.created_at)
    storage.remove_output(storage.output_name(7, job.job_id, "front", "rmbg"))
    sweep(settings, store, storage)
    assert files_of(storage, job) == 0


def test_a_replayed_request_is_told_that_the_files_are_gone(
    settings: Settings, store: Store, storage: FolderStorage, client: FlaskClient
) -> None:
    body = {"id": 7, "output": {"front": "https://example.com/front.png"}}
    headers = {"Idempotency-Key": "order-1", "Prefer": "respond-async"}
    job_id = client.post("/process", json=body, headers=headers).json["job_id"]  # type: ignore[index]
    job = store.get(job_id)
    succeed(store, job)
    store.removed_outputs.note([job_id], job.created_at)
    reply = client.post("/process", json=body, headers=headers)
    assert reply.status_code == 200
    assert reply.json is not None
    assert reply.json["outputs_removed_at"] == job.created_at.isoformat()
    assert store.get(job_id).status == JobStatus.SUCCEEDED


def test_what_a_killed_sweep_has_left_of_a_job_goes_with_the_next_one(
    settings: Settings, store: Store, storage: FolderStorage
) -> None:
    """Given files of a job that is said to have none, then they go, although age and size would let them stay."""
    half_gone, other = make_job(store, storage, 60), make_job(store, storage, 60)
    store.removed_outputs.note([half_gone.job_id], utc_now())
    said_at = store.get(half_gone.job_id).outputs_removed_at
    sweep(settings, store, storage, output_ttl=0, output_max_bytes=10_000)
    assert store.get(half_gone.job_id).outputs_removed_at == said_at
    assert (files_of(storage, half_gone), files_of(storage, other)) == (0, 2)
    assert store.counters.read()["output_bytes"] == {"": 200}


def test_a_killed_writer_leaves_a_part_that_the_sweep_counts_and_removes(
    settings: Settings, store: Store, storage: FolderStorage, tmp_path: Path
) -> None:
    script = (
        "import sys, os, signal; from pathlib import Path; from shared.storage import FolderStorage\n"
        "def half():\n    yield b'half'\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "FolderStorage(Path(sys.argv[1]), 'http://x').write_atomic(sys.argv[2], half())\n"
    )
    name = storage.output_name(7, new_job_id(), "front", "rmbg")
    done = subprocess.run([sys.executable, "-c", script, str(storage.outputs_dir), name], check=False)
    assert done.returncode == -9
    (part,) = storage.outputs_dir.iterdir()
    assert part.name.endswith(".part")
    os.utime(part, (time.time() - HOUR - 60,) * 2)
    Sweeper(settings, store, storage).remove_old_files()
    assert list(storage.outputs_dir.iterdir()) == []
    assert store.counters.read()["abandoned"] == {"part": 1}
