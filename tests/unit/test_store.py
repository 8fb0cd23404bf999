"""The store on a real, private Redis."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from shared.errors import JobNotFound, StoreUnavailable
from shared.jobs import FINAL, OPEN, TRANSITIONS, CellRecord, CellStatus, Job, JobStatus, Source, new_job, new_job_id
from shared.settings import Settings, load_settings
from shared.store import Store
from tests.conftest import eventually
from tests.redis_server import RedisServer, free_port

DONE = CellRecord(status=CellStatus.SUCCEEDED, url="http://x/y.png", width=10, height=20, bytes=300, seconds=0.5)


def make_job(client_id: int | str = 7) -> Job:
    job_id = new_job_id()
    return new_job(
        job_id=job_id,
        client_id=client_id,
        sources={
            "back": Source(kind="url", url="https://example.com/back.png"),
            "front": Source(kind="file", path=f".work/{job_id}/front.upload"),
        },
        models=("rmbg", "birefnet"),
        request_id="req-1",
    )


@pytest.fixture
def job(store: Store) -> Job:
    job = make_job()
    store.create(job)
    return job


def run_to(store: Store, job_id: str, status: JobStatus) -> None:
    path = {JobStatus.QUEUED: [], JobStatus.PREPARING: [JobStatus.PREPARING]}
    for step in path.get(status, [JobStatus.PREPARING, JobStatus.PROCESSING]):
        assert store.transition(job_id, step)
    if status in FINAL:
        assert store.finish(job_id, status)


@pytest.mark.parametrize("client_id", [123, "123", "abc_-Z", 2**53, -4])
def test_a_job_comes_back_as_it_was_stored_with_the_client_id_exactly_as_sent(
    store: Store, client_id: int | str
) -> None:
    job = make_job(client_id)
    store.create(job)
    found = store.get(job.job_id)
    assert found == job
    assert type(found.id) is type(client_id)
    assert list(found.cells) == ["front_rmbg", "front_birefnet", "back_rmbg", "back_birefnet"]


def test_an_unknown_job_is_not_found_by_any_method(store: Store) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get("none"),
        lambda: store.transition("none", JobStatus.PREPARING),
        lambda: store.finish("none", JobStatus.FAILED),
        lambda: store.record_cell("none", "front_rmbg", DONE),
        lambda: store.wait_final("none", 1),
        lambda: store.cancel("none"),
        lambda: store.expire("none"),
        lambda: store.set_mark("none", "a", "b"),
    ]
    for call in calls:
        with pytest.raises(JobNotFound):
            call()
    assert store.get_mark("none", "a") is None


@pytest.mark.parametrize("old", list(JobStatus))
def test_a_job_changes_only_along_the_legal_transitions(store: Store, old: JobStatus) -> None:
    for new in JobStatus:
        job = make_job()
        store.create(job)
        run_to(store, job.job_id, old)
        before = store.get(job.job_id)
        assert store.transition(job.job_id, new) is (new in TRANSITIONS[old])
        assert store.get(job.job_id).status == (new if new in TRANSITIONS[old] else before.status)


@pytest.mark.parametrize("old", sorted(OPEN))
def test_a_job_can_be_finished_from_every_open_state(store: Store, job: Job, old: JobStatus) -> None:
    run_to(store, job.job_id, old)
    assert store.finish(job.job_id, JobStatus.FAILED, error={"code": "internal_error"})
    assert store.get(job.job_id).error == {"code": "internal_error"}


@pytest.mark.parametrize("final", sorted(FINAL))
def test_a_final_state_never_changes(store: Store, job: Job, final: JobStatus) -> None:
    run_to(store, job.job_id, final)
    before, events = store.get(job.job_id), store.events(job.job_id)
    for status in JobStatus:
        assert not store.transition(job.job_id, status, result={"x": 1})
    for status in FINAL:
        assert not store.finish(job.job_id, status, result={"x": 1})
    assert not store.record_cell(job.job_id, "front_rmbg", DONE)
    assert store.get(job.job_id) == before
    assert store.events(job.job_id) == events


def test_start_and_completion_times_are_set_once_each(store: Store, job: Job) -> None:
    store.transition(job.job_id, JobStatus.PREPARING)
    started = store.get(job.job_id).started_at
    store.transition(job.job_id, JobStatus.PREPARING)
    store.transition(job.job_id, JobStatus.PROCESSING)
    store.finish(job.job_id, JobStatus.SUCCEEDED, result={"id": 7})
    done = store.get(job.job_id)
    assert started is not None
    assert done.completed_at is not None
    assert done.started_at == started
    assert done.created_at <= started <= done.completed_at
    assert done.result == {"id": 7}


def test_of_fifty_concurrent_finishes_exactly_one_wins(store: Store, job: Job) -> None:
    barrier = threading.Barrier(50)

    def finish(number: int) -> bool:
        barrier.wait(20)
        return store.finish(job.job_id, JobStatus.SUCCEEDED, result={"winner": number})

    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(finish, range(50)))
    assert outcomes.count(True) == 1
    assert store.get(job.job_id).result == {"winner": outcomes.index(True)}
    finals = [event for _, event in store.events(job.job_id) if event.get("final")]
    assert [event["result"] for event in finals] == [{"winner": outcomes.index(True)}]


def test_finish_refuses_a_status_that_is_not_final(store: Store, job: Job) -> None:
    with pytest.raises(ValueError, match="not a final status"):
        store.finish(job.job_id, JobStatus.PROCESSING)


def test_a_cell_recorded_again_adds_no_second_event(store: Store, job: Job) -> None:
    begun = CellRecord(status=CellStatus.PROCESSING)
    assert store.record_cell(job.job_id, "front_rmbg", begun)
    assert not store.record_cell(job.job_id, "front_rmbg", begun)
    assert store.record_cell(job.job_id, "front_rmbg", DONE)
    assert not store.record_cell(job.job_id, "front_rmbg", DONE)
    assert not store.record_cell(job.job_id, "front_rmbg", begun), "a redelivered cell must not reopen a finished one"
    cells = [event for _, event in store.events(job.job_id) if event["type"] == "cell"]
    assert [(event["cell"], event["status"]) for event in cells] == [
        ("front_rmbg", "processing"),
        ("front_rmbg", "succeeded"),
    ]
    assert store.get(job.job_id).cells["front_rmbg"] == DONE


def test_events_replay_from_any_point(store: Store, job: Job) -> None:
    run_to(store, job.job_id, JobStatus.SUCCEEDED)
    events = store.events(job.job_id)
    assert [event["status"] for _, event in events] == ["queued", "preparing", "processing", "succeeded"]
    assert store.events(job.job_id, events[1][0]) == events[2:]
    assert store.events(job.job_id, events[-1][0], block_ms=1) == []


def test_a_jobs_events_are_capped(store: Store, job: Job) -> None:
    for number in range(600):
        store.record_cell(job.job_id, "front_rmbg", CellRecord(status=CellStatus.PROCESSING, seconds=number))
    assert 200 <= len(store.events(job.job_id)) < 400


def test_a_job_that_is_sent_twice_is_made_once(settings: Settings) -> None:
    """Given a client whose first reply was lost, so that it sends the command again, when the queue has one place."""
    store, job = Store.from_settings(settings.model_copy(update={"max_queued_jobs": 1})), make_job()
    assert store.create(job)
    told = store.events(job.job_id)
    assert store.create(job)
    assert store.events(job.job_id) == told
    store.close()


def test_wait_final_returns_at_once_for_a_job_that_ended_before(store: Store, job: Job) -> None:
    run_to(store, job.job_id, JobStatus.PARTIAL)
    assert store.wait_final(job.job_id, 0).status == JobStatus.PARTIAL
    assert store.wait_final(job.job_id, 30).status == JobStatus.PARTIAL


def test_a_waiter_is_woken_by_the_end_alone(store: Store, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a job with many events, when somebody waits for its end, then its record is read once, when it has come."""
    reads: list[str] = []
    read = store.get

    def counted(job_id: str) -> Job:
        reads.append(job_id)
        return read(job_id)

    monkeypatch.setattr(store, "get", counted)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(store.wait_final, job.job_id, 30)
        eventually(lambda: store._redis.info("clients")["blocked_clients"] == 1)
        for status in (JobStatus.PREPARING, JobStatus.PROCESSING):
            assert store.transition(job.job_id, status)
        for name in job.cells:
            assert store.record_cell(job.job_id, name, CellRecord(status=CellStatus.SUCCEEDED))
        assert not waiter.done()
        assert store.finish(job.job_id, JobStatus.SUCCEEDED, {"id": 1})
        assert waiter.result(30).status == JobStatus.SUCCEEDED
    assert reads == [job.job_id]
    assert 0 < store._redis.ttl(f"job:{job.job_id}:ended") <= 60


def test_who_asks_for_a_job_long_after_its_end_does_not_wait(store: Store, job: Job) -> None:
    """What tells of the end is kept for a minute only: 4 KB a job are much beside thousands of records."""
    run_to(store, job.job_id, JobStatus.SUCCEEDED)
    assert store._redis.delete(f"job:{job.job_id}:ended") == 1
    began = time.monotonic()
    assert store.wait_final(job.job_id, 30).status == JobStatus.SUCCEEDED
    assert time.monotonic() - began < 10


def test_wait_final_returns_the_open_job_when_the_time_is_over(store: Store, job: Job) -> None:
    begun = time.monotonic()
    assert store.wait_final(job.job_id, 0.2).status == JobStatus.QUEUED
    assert 0.2 <= time.monotonic() - begun < 10


def test_fifty_waiters_all_see_the_end(store: Store, job: Job) -> None:
    waiting = threading.Barrier(51)

    def wait(_: int) -> Job:
        waiting.wait(20)
        return store.wait_final(job.job_id, 30)

    with ThreadPoolExecutor(50) as pool:
        jobs = [pool.submit(wait, number) for number in range(50)]
        waiting.wait(20)
        run_to(store, job.job_id, JobStatus.PROCESSING)
        store.record_cell(job.job_id, "front_rmbg", DONE)
        store.finish(job.job_id, JobStatus.SUCCEEDED, result={"id": 7})
        assert all(future.result(30).result == {"id": 7} for future in jobs)


def test_a_blocking_read_may_last_longer_than_the_clients_default_timeout(store: Store, job: Job) -> None:
    # Given the default socket time-out of redis-py 8.1 is 5 s, a wait past it ends by its own time, not by an error.
    assert store.wait_final(job.job_id, 5.6).status == JobStatus.QUEUED


def test_the_queue_counts_positions_from_one_and_closes_up(store: Store) -> None:
    jobs = [make_job(number) for number in range(3)]
    for job in jobs:
        store.create(job)
    assert [store.queue_position(job.job_id) for job in jobs] == [1, 2, 3]
    assert store.queue_depth() == 3
    store.transition(jobs[0].job_id, JobStatus.PREPARING)
    store.finish(jobs[1].job_id, JobStatus.CANCELED)
    assert [store.queue_position(job.job_id) for job in jobs] == [None, None, 1]
    store.delete(jobs[2])
    assert store.queue_depth() == 0
    with pytest.raises(JobNotFound):
        store.get(jobs[2].job_id)


def test_every_key_of_a_job_has_a_lifetime_that_each_change_renews(
    store: Store, job: Job, redis_server: RedisServer, settings: Settings
) -> None:
    with redis.Redis(port=redis_server.port, decode_responses=True) as client:
        keys = [f"job:{job.job_id}", f"job:{job.job_id}:events"]
        assert sorted(client.keys("job:*")) == keys
        assert all(client.ttl(key) > 0 for key in client.keys("*") if key not in ("jobs:queued", "jobs:open"))
        for key in keys:
            client.expire(key, 1000)
        store.transition(job.job_id, JobStatus.PREPARING)
        assert all(settings.job_ttl_s - 60 < client.ttl(key) <= settings.job_ttl_s for key in keys)


def test_marks_are_notes_beside_the_record(store: Store, job: Job) -> None:
    store.set_mark(job.job_id, "front", "prepared")
    assert store.get_mark(job.job_id, "front") == "prepared"
    assert store.get(job.job_id) == job


def test_workers_are_known_while_they_report(store: Store, redis_server: RedisServer) -> None:
    info = {"status": "ready", "device": "cpu", "models": {"rmbg": {"status": "ready"}}}
    store.publish_worker("b", info)
    store.publish_worker("a", info)
    assert [worker["name"] for worker in store.workers()] == ["a", "b"]
    assert store.workers()[0]["models"] == {"rmbg": {"status": "ready"}}
    with redis.Redis(port=redis_server.port) as client:
        assert 0 < client.ttl("worker:a") <= 15
        client.delete("worker:a")  # as its lifetime does
    assert [worker["name"] for worker in store.workers()] == ["b"]
    store.forget_worker("b")
    assert store.workers() == []


def test_a_redis_that_is_down_is_a_named_error() -> None:
    store = Store.from_settings(load_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    for call in (store.ping, store.queue_depth, store.workers, lambda: store.get("x"), lambda: store.events("x")):
        with pytest.raises(StoreUnavailable, match="REDIS_URL"):
            call()


def test_the_store_goes_on_after_redis_was_restarted(tmp_path: object) -> None:
    with RedisServer(persist=True) as server:
        store = Store.from_settings(load_settings(redis_url=server.url))
        job = make_job()
        store.create(job)
        with ThreadPoolExecutor(1) as pool:
            waiter = pool.submit(store.wait_final, job.job_id, 60)
            server.stop()
            with pytest.raises(StoreUnavailable):
                waiter.result(30)
        server.start()
        assert store.get(job.job_id).status == JobStatus.QUEUED
        assert store.finish(job.job_id, JobStatus.CANCELED), "scripts are loaded again when the server forgot them"
        store.close()


def test_marks_come_with_a_change_of_status_and_only_if_it_happens(store: Store) -> None:
    job = make_job()
    store.create(job)
    assert store.transition(job.job_id, JobStatus.PREPARING, {"one": "1"}) is True
    assert store.transition(job.job_id, JobStatus.PREPARING, {"two": "2"}) is False
    assert store.get_with_marks(job.job_id)[1] == {"one": "1"}
    assert store.get(job.job_id).status == JobStatus.PREPARING
