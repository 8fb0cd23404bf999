"""Webhooks of a real worker process to a real receiver: told once, whoever ended the job and whoever was killed."""

from collections.abc import Iterator

import pytest
import redis

from shared.jobs import JobStatus
from shared.store import Delivery
from shared.store.deliveries import DUE_KEY
from tests.integration.test_worker import Service, picture, service
from tests.processes import Process, wait_for
from tests.receiver import SECRET, Receiver

__all__ = ["service"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def start(service: Service, **settings: str) -> Process:
    return service.start_worker(WEBHOOK_SECRET=SECRET, **settings)


def submit(service: Service, url: str, *events: str, seed: int = 3) -> str:
    webhook = {"url": url, **({"events": list(events)} if events else {})}
    return service.submit({"front": picture(seed)}, options={"webhook": webhook})


def deliveries(service: Service, job_id: str) -> list[Delivery]:
    return list(service.store.deliveries.of_job(job_id).values())


def make_due(service: Service) -> None:
    """Let the time until every next try pass."""
    with redis.Redis.from_url(service.settings.redis_url.get_secret_value(), decode_responses=True) as connection:
        for ref in connection.zrange(DUE_KEY, 0, -1):
            connection.zadd(DUE_KEY, {ref: 0})


def test_every_event_of_a_job_arrives_signed_and_once(service: Service, receiver: Receiver) -> None:
    worker = start(service, OUTPUT_URL_TTL="600", OUTPUT_URL_SECRET="x" * 32)
    job_id = submit(service, receiver.url(), "job.started", "cell.done", "job.succeeded", "job.failed")
    service.wait(job_id)
    service.send(job_id)  # the message comes a second time, as after a kill
    wait_for("four webhooks", lambda: len(receiver.received) >= 4, worker)
    wait_for("their records", lambda: all(d.state == "delivered" for d in deliveries(service, job_id)), worker)
    types = sorted(received.verified()["type"] for received in receiver.received)
    assert types == ["cell.done", "cell.done", "job.started", "job.succeeded"]
    assert len({received.id for received in receiver.received}) == 4
    (final,) = receiver.of_type("job.succeeded")
    assert "?expires=" in final.verified()["data"]["result"]["front_rmbg"]  # signed as in a reply


def test_a_job_that_ended_while_no_worker_ran_is_told_by_the_next_one(service: Service, receiver: Receiver) -> None:
    """Given a job that the API ended, and nobody to send: the promise was written with the end itself."""
    job_id = submit(service, receiver.url())
    assert service.store.finish(job_id, JobStatus.CANCELED)
    worker = start(service)
    wait_for("the webhook", lambda: receiver.received, worker)
    assert receiver.received[0].verified()["type"] == "job.canceled"


def test_a_worker_killed_while_it_told_is_followed_by_one_that_tells_under_the_same_id(
    service: Service, receiver: Receiver
) -> None:
    worker = start(service, WEBHOOK_TIMEOUT_S="60")
    job_id = submit(service, receiver.url("/hang"))
    wait_for("the first try", lambda: receiver.received, worker)
    worker.kill()
    assert [d.state for d in deliveries(service, job_id)] == ["pending"]
    receiver.release.set()
    second = start(service)
    make_due(service)  # the claim of the dead one runs out
    wait_for("the delivery", lambda: [d.state for d in deliveries(service, job_id)] == ["delivered"], second)
    first_try, second_try = receiver.received
    assert first_try.id == second_try.id
    assert first_try.verified() == second_try.verified()


def test_endpoints_that_hang_do_not_hold_up_the_cells(service: Service, receiver: Receiver) -> None:
    """Given more webhooks that hang than threads, when jobs come, then they are done while the webhooks hang."""
    worker = start(service, WORKER_THREADS="4", WEBHOOK_TIMEOUT_S="60")
    for seed in range(6):
        service.wait(submit(service, receiver.url("/hang"), seed=seed))
    wait_for("a webhook that hangs", lambda: receiver.received, worker)
    make_due(service)
    for seed in range(3):
        assert service.wait(service.submit({"front": picture(seed)}), 30).status == JobStatus.SUCCEEDED
    assert len(receiver.received) == 1  # one at a time to one host
    assert not receiver.release.is_set()
