"""Messages that nobody works on come back, and open jobs without a message are planned again."""

import json
import time

import pytest
import redis
from celery import Celery

from shared.jobs import JobStatus, Source, new_job, new_job_id
from shared.messages import CELL_QUEUE, QUEUE, send_plan
from shared.settings import Settings
from shared.store import Store
from shared.store.queue import OPEN_JOBS
from tests.redis_server import RedisServer
from worker import held
from worker import rescuer as module
from worker.app import make_worker_app
from worker.held import jobs_with_messages
from worker.pipeline import CANVAS_MARK
from worker.rescuer import Rescuer

LONG_AGO_S = 1000


class Killed(BaseException):
    """What ends a rescuer in mid-step, as a kill does: nothing of ours catches it."""


def die(*_: object, **__: object) -> None:
    raise Killed


class Broker:
    """What is in the queues and what workers are said to hold, seen past Celery."""

    def __init__(self, app: Celery, store: Store, server: RedisServer) -> None:
        self.app, self.store = app, store
        self.redis = redis.Redis(port=server.port, decode_responses=True)

    def make(self, *, is_sent: bool) -> str:
        """An open job that has not changed for long, with or without its message."""
        source = Source(kind="url", url="https://example.com/a.png")
        job = new_job(job_id=new_job_id(), client_id=7, sources={"front": source}, models=("rmbg",))
        self.store.create(job)
        if is_sent:
            send_plan(self.app, job.job_id, "req-1")
        self.age(job.job_id)
        return job.job_id

    def age(self, job_id: str) -> None:
        self.redis.zadd(OPEN_JOBS, {job_id: time.time() - LONG_AGO_S})

    def take(self, worker: str) -> str:
        """A worker takes the next message and notes that it holds it, as kombu does; the tag."""
        message = json.loads(self.redis.rpop(QUEUE) or "")  # type: ignore[arg-type]
        tag = str(message["properties"]["delivery_tag"])
        self.redis.hset(f"unacked:{worker}", tag, json.dumps([message, "", QUEUE]))
        self.redis.zadd(f"unacked_index:{worker}", {tag: time.time()})
        return tag

    def waiting(self, queue: str) -> int:
        return int(self.redis.llen(queue))


@pytest.fixture
def app(settings: Settings) -> Celery:
    return make_worker_app(settings)


@pytest.fixture
def broker(app: Celery, store: Store, redis_server: RedisServer) -> Broker:
    return Broker(app, store, redis_server)


@pytest.fixture
def rescuer(settings: Settings, store: Store, app: Celery) -> Rescuer:
    return Rescuer(settings, store, app)


def test_a_job_without_a_message_is_planned_again_at_the_second_look_and_only_once(
    rescuer: Rescuer, broker: Broker, store: Store
) -> None:
    job_id = broker.make(is_sent=False)
    store.set_mark(job_id, CANVAS_MARK, "submitted")  # its cells were on their way, and are lost
    rescuer.tick()
    assert broker.waiting(CELL_QUEUE) == 0, "one look proves nothing"
    rescuer.tick()
    assert broker.waiting(CELL_QUEUE) == 1
    assert jobs_with_messages(broker.app, [], {job_id, "another"}) == {job_id}
    assert store.get_mark(job_id, CANVAS_MARK) != "submitted"
    for _ in range(3):
        rescuer.tick()
    assert broker.waiting(CELL_QUEUE) == 1


@pytest.mark.parametrize("is_held", [False, True])
def test_a_job_that_waits_or_is_worked_on_is_left_alone(rescuer: Rescuer, broker: Broker, is_held: bool) -> None:
    broker.make(is_sent=True)
    if is_held:
        broker.store.publish_worker("worker-2", {"status": "ready"})
        broker.take("worker-2")
    for _ in range(3):
        rescuer.tick()
    assert broker.waiting(CELL_QUEUE) == 0
    assert broker.waiting(QUEUE) == (0 if is_held else 1)


def test_a_job_that_waits_behind_thousands_of_messages_keeps_its_place(rescuer: Rescuer, broker: Broker) -> None:
    """Given the messages of canceled jobs, which stay in the queue and count for no limit."""
    broker.make(is_sent=True)
    send_plan(broker.app, new_job_id(), "req-2")
    canceled = str(broker.redis.lpop(QUEUE))
    broker.redis.rpush(QUEUE, *[canceled] * 4500)
    for _ in range(3):
        rescuer.tick()
    assert broker.waiting(CELL_QUEUE) == 0


def test_a_lost_job_is_found_although_thousands_of_messages_wait(rescuer: Rescuer, broker: Broker) -> None:
    lost = broker.make(is_sent=False)
    send_plan(broker.app, new_job_id(), "req-2")
    broker.redis.rpush(QUEUE, *broker.redis.lrange(QUEUE, 0, 0) * 4500)
    for _ in range(2):
        rescuer.tick()
    assert jobs_with_messages(broker.app, [], {lost}) == {lost}
    assert broker.waiting(CELL_QUEUE) == 1


def test_a_lost_job_is_found_behind_more_waiting_ones_than_are_looked_at_in_one_go(
    rescuer: Rescuer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    for _ in range(5):
        broker.make(is_sent=True)
    lost = [broker.make(is_sent=False), broker.make(is_sent=False)]
    broker.redis.zadd(OPEN_JOBS, dict.fromkeys(lost, time.time() - LONG_AGO_S / 2))
    for _ in range(8):
        rescuer.tick()
    assert jobs_with_messages(broker.app, [], {*lost}) == {*lost}
    assert broker.waiting(CELL_QUEUE) == 2, "each once, and nobody else"


def test_a_job_that_has_just_changed_or_has_ended_is_left_alone(rescuer: Rescuer, broker: Broker, store: Store) -> None:
    changed, ended = broker.make(is_sent=False), broker.make(is_sent=False)
    store.transition(changed, JobStatus.PREPARING)
    store.finish(ended, JobStatus.CANCELED)
    for _ in range(3):
        rescuer.tick()
    assert broker.waiting(CELL_QUEUE) == 0
    assert broker.redis.zrange(OPEN_JOBS, 0, -1) == [changed]


def test_a_job_whose_record_is_gone_is_forgotten(rescuer: Rescuer, broker: Broker) -> None:
    job_id = broker.make(is_sent=False)
    broker.redis.delete(f"job:{job_id}")  # as its lifetime does
    for _ in range(2):
        rescuer.tick()
    assert broker.redis.zcard(OPEN_JOBS) == 0
    assert broker.waiting(CELL_QUEUE) == 0


def test_a_dead_workers_messages_come_back_and_its_jobs_are_suspected(
    rescuer: Rescuer, broker: Broker, store: Store
) -> None:
    job_id = broker.make(is_sent=True)
    store.publish_worker("worker-2", {"status": "ready"})
    broker.take("worker-2")
    store.under_way.begin("worker-2", job_id)
    for _ in range(3):
        rescuer.tick()
    assert broker.waiting(QUEUE) == 0, "it lives"
    broker.redis.delete("worker:worker-2")  # no report for 15 s
    rescuer.tick()
    assert broker.waiting(QUEUE) == 0, "it may have missed one report"
    rescuer.tick()
    assert broker.waiting(QUEUE) == 1
    assert broker.redis.hlen("unacked:worker-2") == broker.redis.zcard("unacked_index:worker-2") == 0
    assert store.under_way.begin("worker-1", job_id) == 1
    assert store.holders() == {}


def test_a_rescuer_that_dies_between_counting_a_crash_and_giving_back_is_followed_by_one_that_counts_no_more(
    settings: Settings, rescuer: Rescuer, broker: Broker, store: Store, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = broker.make(is_sent=True)
    store.publish_worker("worker-2", {"status": "ready"})
    broker.redis.delete("worker:worker-2")
    broker.take("worker-2")
    store.under_way.begin("worker-2", job_id)
    rescuer.tick()
    with monkeypatch.context() as patch:
        patch.setattr(held, "give_back_tags", die)
        with pytest.raises(Killed):
            rescuer.tick()
    assert broker.waiting(QUEUE) == 0
    again = Rescuer(settings, store, app)
    for _ in range(2):
        again.tick()
    assert broker.waiting(QUEUE) == 1
    assert store.under_way.begin("worker-1", job_id) == 1


@pytest.mark.parametrize(("owner", "step"), [(module, "send_plan"), (Store, "touch")])
def test_a_rescuer_that_dies_around_the_new_message_leaves_a_job_that_is_planned_once(
    settings: Settings,
    store: Store,
    app: Celery,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    step: str,
) -> None:
    job_id = broker.make(is_sent=False)
    first = Rescuer(settings, store, app)
    first.tick()
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, die)
        with pytest.raises(Killed):
            first.tick()
    second = Rescuer(settings, store, app)
    for _ in range(4):
        second.tick()
    assert broker.waiting(CELL_QUEUE) == 1
    assert jobs_with_messages(broker.app, [], {job_id}) == {job_id}


def test_a_message_that_this_worker_is_said_to_hold_and_does_not_comes_back(rescuer: Rescuer, broker: Broker) -> None:
    broker.make(is_sent=True)
    broker.take("worker-1")
    rescuer.tick()
    assert broker.waiting(QUEUE) == 0
    rescuer.tick()
    assert broker.waiting(QUEUE) == 1


def test_a_message_in_this_workers_hands_stays_there(
    rescuer: Rescuer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.make(is_sent=True)
    tag = broker.take("worker-1")
    monkeypatch.setattr(module, "tags_in_hand", lambda: {tag})
    for _ in range(3):
        rescuer.tick()
    assert broker.waiting(QUEUE) == 0


def test_entries_that_are_no_messages_do_not_stop_the_rescue(rescuer: Rescuer, broker: Broker) -> None:
    for junk in ("no JSON", "[]", "7", '{"body": "?"}', '{"body": "W10="}'):
        broker.redis.lpush(QUEUE, junk)
    broker.make(is_sent=False)
    for _ in range(2):
        rescuer.tick()
    assert broker.waiting(CELL_QUEUE) == 1


def test_an_outage_of_redis_is_lived_through(settings: Settings) -> None:
    with RedisServer(persist=True) as server:
        here = settings.model_copy(update={"redis_url": type(settings.redis_url)(server.url)})
        store, app = Store.from_settings(here), make_worker_app(here)
        broker, rescuer = Broker(app, store, server), Rescuer(here, store, app)
        broker.make(is_sent=False)
        rescuer.tick()
        server.stop()
        rescuer.tick()
        server.start()
        for _ in range(2):
            rescuer.tick()
        assert broker.waiting(CELL_QUEUE) == 1
        store.close()
