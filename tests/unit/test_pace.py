"""Estimates from measured times, and the queue that does not grow past its limit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from shared.errors import QueueFull
from shared.jobs import Job, JobStatus, Source, new_job, new_job_id
from shared.settings import Settings
from shared.store import Store
from tests.redis_server import RedisServer


def make_job() -> Job:
    sources = {"front": Source(kind="url", url="https://example.com/front.png")}
    return new_job(job_id=new_job_id(), client_id=7, sources=sources, models=("rmbg",))  # type: ignore[arg-type]


def test_there_is_no_estimate_before_anything_was_measured(store: Store) -> None:
    assert store.pace.eta_s(1, 4) is None
    assert store.pace.retry_after_s(500) == 5


def test_a_job_that_took_over_all_its_cells_is_no_measure(store: Store) -> None:
    store.pace.record(1000, 1000.01, 0)
    assert store.pace.eta_s(1, 4) is None


def test_jobs_one_after_the_other_take_their_time_each(store: Store) -> None:
    for number in range(20):
        store.pace.record(1000 + 2 * number, 1002 + 2 * number, 4)
    assert store.pace.eta_s(1, 4) == pytest.approx(2)
    assert store.pace.eta_s(6, 4) == pytest.approx(12)
    assert store.pace.retry_after_s(500) == 100
    assert store.pace.retry_after_s(1) == 2


def test_jobs_that_overlap_are_not_counted_twice(store: Store) -> None:
    # Four at a time, each 8 s long, one ends every 2 s: the queue moves by one job in 2 s.
    for number in range(40):
        store.pace.record(1000 + 2 * number, 1008 + 2 * number, 4)
    assert store.pace.eta_s(1, 4) == pytest.approx(8)
    assert store.pace.eta_s(11, 4) == pytest.approx(28, rel=0.1)


def test_idle_time_between_jobs_does_not_make_them_slow(store: Store) -> None:
    for number in range(10):
        store.pace.record(1000 + 3600 * number, 1002 + 3600 * number, 4)
    assert store.pace.eta_s(3, 4) == pytest.approx(6)


def test_an_estimate_knows_jobs_by_their_number_of_cells(store: Store) -> None:
    for number in range(10):
        store.pace.record(1000 + 10 * number, 1001 + 10 * number, 1)
        store.pace.record(1002 + 10 * number, 1008 + 10 * number, 4)
    assert store.pace.eta_s(1, 1) == pytest.approx(1)
    assert store.pace.eta_s(1, 4) == pytest.approx(6)
    assert store.pace.eta_s(1, 2) == pytest.approx(2), "never seen: scaled from the nearest"
    assert store.pace.eta_s(1, 8) == pytest.approx(12)


def test_an_estimate_follows_a_service_that_got_faster(store: Store) -> None:
    for number in range(10):
        store.pace.record(1000 + 10 * number, 1010 + 10 * number, 4)
    for number in range(40):
        store.pace.record(2000 + number, 2001 + number, 4)
    assert store.pace.eta_s(5, 4) == pytest.approx(5, rel=0.25)


def test_what_was_measured_is_forgotten_after_a_while(
    store: Store, redis_server: RedisServer, settings: Settings
) -> None:
    store.pace.record(1000, 1002, 4)
    with redis.Redis(port=redis_server.port) as client:
        assert 0 < client.ttl("jobs:pace") <= settings.job_ttl_s


def test_a_burst_does_not_overshoot_the_limit(settings: Settings) -> None:
    store = Store.from_settings(settings.model_copy(update={"max_queued_jobs": 10}))
    barrier = threading.Barrier(40)

    def create(_: int) -> bool:
        barrier.wait(20)
        try:
            return store.create(make_job())
        except QueueFull:
            return False

    with ThreadPoolExecutor(40) as pool:
        created = list(pool.map(create, range(40)))
    assert created.count(True) == 10
    assert store.queue_depth() == 10
    store.close()


def test_only_waiting_jobs_count(settings: Settings) -> None:
    store = Store.from_settings(settings.model_copy(update={"max_queued_jobs": 1}))
    first = make_job()
    store.create(first)
    with pytest.raises(QueueFull):
        store.create(make_job())
    store.transition(first.job_id, JobStatus.PREPARING)
    assert store.create(make_job())
    store.close()
