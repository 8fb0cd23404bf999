"""Webhooks with a real Redis and a real receiver: signature, tries, what is retried, what the job shows of it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from standardwebhooks import Webhook, WebhookVerificationError

from api.schemas import JobEnvelope
from shared.errors import StoreUnavailable
from shared.jobs import CellRecord, CellStatus, ExtractionReport, Job, JobStatus, Source, TokenUse, new_job, new_job_id
from shared.settings import Settings
from shared.store import Deliveries, Delivery, Store
from shared.store.deliveries import DUE_KEY, deliveries_key
from tests.conftest import succeed
from tests.receiver import SECRET, Receiver
from tests.redis_server import free_port
from worker.backoff import DELAYS_S, next_delay_s, parse_retry_after
from worker.budget import HostBudget
from worker.webhooks import WebhookSender, job_data

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def settings(settings: Settings) -> Settings:
    secrets = Settings(webhook_secret=SECRET)
    return settings.model_copy(
        update={
            "webhook_secret": secrets.webhook_secret,
            "webhook_timeout_s": 60,  # a try that is late on a busy machine would be made again, in another order
            "allow_private_sources": ("127.0.0.1",),
        }
    )


@pytest.fixture
def deliveries(store: Store) -> Deliveries:
    return store.deliveries


@pytest.fixture
def sender(settings: Settings, store: Store) -> WebhookSender:
    return WebhookSender(settings, store)


@pytest.fixture
def connection(settings: Settings) -> Iterator[Any]:
    with redis.Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True) as connection:
        yield connection


def queued(store: Store, url: str, *events: str) -> Job:
    webhook = {"url": url, **({"events": list(events)} if events else {})}
    job = new_job(
        job_id=new_job_id(),
        client_id="a",
        sources={"front": Source(kind="url", url="http://x/")},
        models=("rmbg", "birefnet"),
        options={"webhook": webhook},
    )
    store.create(job)
    return job


def try_due(sender: WebhookSender, deliveries: Deliveries) -> int:
    """Make the tries that are due now, as clock and task do; how many there were."""
    due = deliveries.claim_due(100)
    for job_id, event_id, token in due:
        sender.send(job_id, event_id, token)
    return len(due)


def make_due(connection: Any, job: Job) -> None:
    """Let the time until the next tries pass."""
    for ref in connection.zrange(DUE_KEY, 0, -1):
        if ref.startswith(job.job_id):
            connection.zadd(DUE_KEY, {ref: 0})


def only(deliveries: Deliveries, job: Job) -> Delivery:
    (delivery,) = deliveries.of_job(job.job_id).values()
    return delivery


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_end_of_a_job_is_told_once_and_signed(
    store: Store, deliveries: Deliveries, sender: WebhookSender, receiver: Receiver
) -> None:
    job = queued(store, receiver.url())
    succeed(store, job)
    assert not store.finish(job.job_id, JobStatus.FAILED)  # a second end is none, and tells nothing
    assert try_due(sender, deliveries) == 1
    (received,) = receiver.received
    body = received.verified()
    assert body["type"] == "job.succeeded"
    assert body["data"]["job_id"] == job.job_id
    assert body["data"]["result"]["front_rmbg"].startswith("http://service.test/outputs/design_a_")
    assert abs(datetime.fromisoformat(body["timestamp"]) - datetime.now(UTC)) < timedelta(seconds=30)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(received.body.replace(b"succeeded", b"failedddd"), dict(received.headers.items()))
    assert try_due(sender, deliveries) == 0
    assert (only(deliveries, job).state, [a.status for a in only(deliveries, job).attempts]) == ("delivered", [204])


def test_only_the_events_that_were_asked_for_are_told(
    store: Store, deliveries: Deliveries, sender: WebhookSender, receiver: Receiver
) -> None:
    job = queued(store, receiver.url(), "job.started", "cell.done", "job.failed")
    store.transition(job.job_id, JobStatus.PREPARING)
    store.transition(job.job_id, JobStatus.PROCESSING)
    store.record_cell(job.job_id, "front_rmbg", CellRecord(status=CellStatus.PROCESSING))
    store.record_cell(job.job_id, "front_rmbg", CellRecord(status=CellStatus.FAILED, error={"code": "x"}))
    store.record_cell(job.job_id, "front_birefnet", CellRecord(status=CellStatus.SUCCEEDED, url="http://x/y.png"))
    store.finish(job.job_id, JobStatus.PARTIAL, result={})
    assert try_due(sender, deliveries) == 3
    bodies = [received.verified() for received in receiver.received]
    assert [(body["type"], body["data"].get("cell")) for body in bodies] == [
        ("job.started", None),
        ("cell.done", "front_rmbg"),
        ("cell.done", "front_birefnet"),
    ]
    assert len({received.id for received in receiver.received}) == 3
    # Each by its first try: that a slow one comes again, and so later, is what the tests of tries are about.
    assert [len(d.attempts) for d in deliveries.of_job(job.job_id).values()] == [1, 1, 1]


def test_a_job_without_a_webhook_leaves_nothing_behind(store: Store, deliveries: Deliveries) -> None:
    job = new_job(job_id=new_job_id(), client_id=1, sources={"front": Source(kind="url", url="http://x/")}, models=())
    store.create(job)
    store.finish(job.job_id, JobStatus.FAILED)
    assert deliveries.claim_due(9) == []
    assert deliveries.report(job) is None


def test_the_data_is_the_envelope(store: Store) -> None:
    """A receiver and a poller can share their code: same names, same values."""
    job = queued(store, "http://x/")
    only_while_asked = {"links", "queue_position", "eta_seconds", "webhook"}
    assert set(job_data(job)) == set(JobEnvelope.model_fields) - only_while_asked
    assert job_data(job)["progress"] == {"done": 0, "total": 2}
    report = ExtractionReport(status="extracted", reason="asked", tokens=TokenUse(prompt=3, candidates=4, total=7))
    extracted = job.model_copy(update={"extraction": {"front": report}})
    assert json.loads(json.dumps(job_data(extracted)))["tokens"] == {"prompt": 3, "candidates": 4, "total": 7}


def test_the_receiver_in_the_readme_takes_it_once(
    store: Store,
    deliveries: Deliveries,
    sender: WebhookSender,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = (
        README.read_text().partition("<!-- run by tests/unit/test_webhooks.py -->\n```python\n")[2].partition("```")[0]
    )
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    scope: dict[str, Any] = {}
    exec(code, scope)
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.FAILED)
    try_due(sender, deliveries)
    (received,) = receiver.received
    headers = {name.lower(): value for name, value in received.headers.items()}
    assert [scope["receive"](headers, received.body) for _ in range(2)] == [204, 204]
    assert capsys.readouterr().out.count(f"job.failed {job.job_id}\n") == 1
    assert scope["receive"](headers, received.body + b" ") == 401


# --- tries ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 599])
def test_a_fault_that_may_pass_is_tried_again_under_the_same_id(
    store: Store,
    deliveries: Deliveries,
    sender: WebhookSender,
    receiver: Receiver,
    status: int,
    connection: Any,
) -> None:
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.FAILED)
    receiver.answers = [(status, {})]
    try_due(sender, deliveries)
    assert only(deliveries, job).state == "pending"
    assert try_due(sender, deliveries) == 0  # not yet
    make_due(connection, job)
    try_due(sender, deliveries)
    assert only(deliveries, job).state == "delivered"
    assert [attempt.status for attempt in only(deliveries, job).attempts] == [status, 204]
    first, second = receiver.received
    assert first.id == second.id == only(deliveries, job).id
    assert second.verified() == first.verified()


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 410, 422])
def test_an_answer_that_will_not_change_ends_the_tries(
    store: Store,
    deliveries: Deliveries,
    sender: WebhookSender,
    receiver: Receiver,
    status: int,
    connection: Any,
) -> None:
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.FAILED)
    receiver.answers = [(status, {"Location": receiver.url("/elsewhere")})]
    try_due(sender, deliveries)
    make_due(connection, job)
    assert try_due(sender, deliveries) == 0
    delivery = only(deliveries, job)
    assert (delivery.state, [attempt.status for attempt in delivery.attempts]) == ("given_up", [status])
    assert [received.path for received in receiver.received] == ["/hook"]  # redirects are not followed


def test_after_ten_tries_it_is_given_up(
    store: Store, deliveries: Deliveries, sender: WebhookSender, receiver: Receiver, connection: Any
) -> None:
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.CANCELED)
    receiver.answers = [(500, {})] * 20
    while try_due(sender, deliveries):
        make_due(connection, job)
    assert len(receiver.received) == 10
    assert only(deliveries, job).state == "given_up"
    assert {attempt.error for attempt in only(deliveries, job).attempts} == {"answered 500"}


def test_silence_and_a_closed_port_are_tried_again(
    settings: Settings, store: Store, deliveries: Deliveries, receiver: Receiver
) -> None:
    sender = WebhookSender(settings.model_copy(update={"webhook_timeout_s": 0.3}), store)
    silent, closed = queued(store, receiver.url("/hang")), queued(store, f"http://127.0.0.1:{free_port()}/x?token=1")
    for job in (silent, closed):
        store.finish(job.job_id, JobStatus.FAILED)
    try_due(sender, deliveries)
    for job, words in ((silent, "no answer within 0.3 s"), (closed, "cannot be fetched")):
        delivery = only(deliveries, job)
        (attempt,) = delivery.attempts
        assert (delivery.state, attempt.status) == ("pending", None)
        assert words in (attempt.error or "")
        assert "token" not in (attempt.error or "")


@pytest.mark.parametrize("url", ["http://127.0.0.2:9/x", "http://169.254.169.254/latest", "http://[::1]/x"])
def test_a_private_address_is_never_asked(
    store: Store, deliveries: Deliveries, sender: WebhookSender, url: str
) -> None:
    job = queued(store, url)
    store.finish(job.job_id, JobStatus.FAILED)
    try_due(sender, deliveries)
    delivery = only(deliveries, job)
    assert delivery.state == "given_up"
    assert "is not at a public address" in (delivery.attempts[0].error or "")


def test_the_tries_take_two_hours() -> None:
    assert len(DELAYS_S) == 9
    assert sum(DELAYS_S) == 7200
    assert max(DELAYS_S) * 1.1 < 3600
    for tries, plain_s in enumerate(DELAYS_S, 1):
        found = [next_delay_s(tries) for _ in range(50)]
        assert all(delay_s is not None and 0.9 * plain_s <= delay_s <= 1.1 * plain_s for delay_s in found)
        assert len(set(found)) > 1  # receivers that come back are not met by all at once
    assert next_delay_s(10) is None


def test_retry_after_is_honoured_within_bounds() -> None:
    assert next_delay_s(1, 120) == 120
    assert next_delay_s(1, 10**9) == 3600
    assert (next_delay_s(9, 1) or 0) > 2000  # it never hurries us
    assert parse_retry_after("120") == 120
    later = parse_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert later is not None
    assert 80 < later <= 90
    assert [parse_retry_after(value) for value in (None, "", "soon", "-5", "²")] == [None] * 5


def test_the_receivers_retry_after_sets_the_next_try(
    store: Store, deliveries: Deliveries, sender: WebhookSender, receiver: Receiver, connection: Any
) -> None:
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.FAILED)
    receiver.answers = [(429, {"Retry-After": "1000"})]
    try_due(sender, deliveries)
    ((_, due_ms),) = connection.zrange(DUE_KEY, 0, 0, withscores=True)
    assert 990 < due_ms / 1000 - datetime.now(UTC).timestamp() <= 1000


def test_two_messages_for_one_try_are_one_try(
    store: Store, deliveries: Deliveries, sender: WebhookSender, receiver: Receiver
) -> None:
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.FAILED)
    ((job_id, event_id, token),) = deliveries.claim_due(9)
    sender.send(job_id, event_id, token)
    sender.send(job_id, event_id, token)
    assert len(receiver.received) == 1


def test_a_try_that_was_claimed_and_never_made_comes_again(
    store: Store, deliveries: Deliveries, sender: WebhookSender, receiver: Receiver, connection: Any
) -> None:
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.FAILED)
    assert len(deliveries.claim_due(9)) == 1  # and then the worker is killed
    assert deliveries.claim_due(9) == []
    make_due(connection, job)
    assert try_due(sender, deliveries) == 1
    assert len(receiver.received) == 1


def test_a_job_that_is_gone_takes_its_deliveries_along(
    store: Store, deliveries: Deliveries, sender: WebhookSender, receiver: Receiver, connection: Any
) -> None:
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.FAILED)
    store.delete(job)
    assert try_due(sender, deliveries) == 1
    make_due(connection, job)
    assert try_due(sender, deliveries) == 0
    assert receiver.received == []
    assert not connection.exists(deliveries_key(job.job_id))


def test_a_worker_without_the_secret_sends_nothing_unsigned(
    settings: Settings, store: Store, deliveries: Deliveries, receiver: Receiver
) -> None:
    bare = settings.model_copy(update={"webhook_secret": Settings().webhook_secret})
    job = queued(store, receiver.url())
    store.finish(job.job_id, JobStatus.FAILED)
    try_due(WebhookSender(bare, store), deliveries)
    assert receiver.received == []
    assert only(deliveries, job).state == "pending"


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_job_shows_every_try_but_not_the_query(
    store: Store, deliveries: Deliveries, sender: WebhookSender, receiver: Receiver
) -> None:
    job = queued(store, receiver.url("/hook?token=hunter2"), "job.failed")
    store.finish(job.job_id, JobStatus.FAILED)
    receiver.answers = [(503, {})]
    with structlog.testing.capture_logs() as lines:
        try_due(sender, deliveries)
    report = deliveries.report(job)
    assert report is not None
    assert (report.url, report.events) == (receiver.url("/hook"), ["job.failed"])
    (delivery,) = report.deliveries
    assert (delivery.type, delivery.state, delivery.attempts[0].error) == ("job.failed", "pending", "answered 503")
    assert delivery.attempts[0].seconds >= 0
    tried = next(line for line in lines if line["event"] == "webhook_tried")
    assert (tried["host"], tried["status"], tried["tries"]) == (f"127.0.0.1:{receiver.port}", 503, 1)
    assert "hunter2" not in str(lines) + report.model_dump_json()


def test_one_host_gets_one_request_at_a_time_and_all_hosts_few() -> None:
    budget = HostBudget(2)
    with budget.hold("a") as first, budget.hold("a") as same, budget.hold("b") as other, budget.hold("c") as third:
        assert (first, same, other, third) == (True, False, True, False)
    with budget.hold("a") as again:
        assert again


def test_without_redis_a_try_says_so(settings: Settings) -> None:
    gone = Store.from_settings(settings.model_copy(update={"redis_url": Settings(
        redis_url=f"redis://127.0.0.1:{free_port()}/0").redis_url}))  # fmt: skip
    with pytest.raises(StoreUnavailable):
        gone.deliveries.claim_due(1)
    gone.close()
