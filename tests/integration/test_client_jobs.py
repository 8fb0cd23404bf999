"""The client and the job routes of the real service: events, cancel, retry, delete, list, idempotency keys."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from client import CutoutClient, CutoutError, Job
from client.batch import Batch, Outcome
from client.pairs import Pair
from client.state import Entry, State
from tests.integration.test_client import Stack, client, stack
from tests.integration.test_worker import picture
from tests.processes import wait_for

__all__ = ["client", "stack"]  # fixtures


def ended(client: CutoutClient, **options: list[str]) -> str:
    """The id of a job that has ended."""
    return client.process("job", front=picture(7), options=options).job_id


@contextmanager
def gate(stack: Stack, name: str) -> Iterator[None]:
    """Steer the tiny engine for a while: `hold-rmbg`, `break-birefnet`; see tests/tiny_worker.py."""
    path = stack.gate / name
    path.touch()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # a test may have let go earlier


def test_events_come_while_the_job_runs_and_can_be_taken_up_in_the_middle(stack: Stack, client: CutoutClient) -> None:
    with gate(stack, "hold-rmbg"):
        job = client.submit("live", front=picture(30), options={"models": ["rmbg"]})
        events = client.events(job.job_id)
        seen = [next(events)]
        while seen[-1].data.get("status") != "processing":
            seen.append(next(events))
        assert not client.get(job.job_id).is_final  # what was seen came before the end
    rest = list(events)
    assert (rest[-1].type, rest[-1].data["status"], rest[-1].is_final) == ("status", "succeeded", True)
    assert any(event.type == "cell" and event.data["cell"] == "front_rmbg" for event in rest)
    whole = [*seen, *rest]
    assert list(client.events(job.job_id)) == whole
    assert list(client.events(job.job_id, after=whole[1].id)) == whole[2:]
    assert list(client.events(job.job_id, after=whole[-1].id)) == []


@pytest.mark.parametrize(("seed", "models"), [(31, ["rmbg", "birefnet"]), (131, ["birefnet", "rmbg"])])
def test_waiting_counts_cells_as_they_are_finished(
    stack: Stack, client: CutoutClient, seed: int, models: list[str]
) -> None:
    """Given two cells of which one is on the device, when that one may end and the other may not, then one is counted.

    Either cell may come first: they are sent at once and taken by two threads. Whichever is on the device holds it, so
    a test that held one model only would wait for ever where that model's cell came first.
    """
    counts: list[int] = []
    one_is_done = threading.Event()

    def note(done: int) -> None:
        counts.append(done)
        one_is_done.set()

    def on_the_device() -> list[str]:
        return [model for model in models if (stack.gate / f"entered-{model}").exists()]

    for model in on_the_device():  # notes of earlier tests
        (stack.gate / f"entered-{model}").unlink()
    with ThreadPoolExecutor(1) as pool:
        with gate(stack, "hold-rmbg"), gate(stack, "hold-birefnet"):
            job = client.submit("count", front=picture(seed), options={"models": models})
            result = pool.submit(client.wait, job.job_id, timeout_s=90, on_progress=note)
            wait_for("a forward pass", lambda: bool(on_the_device()), stack.worker)
            (first,) = on_the_device()
            (stack.gate / f"hold-{first}").unlink()
            assert one_is_done.wait(30)
            assert counts == [1]
        assert result.result(30).status == "succeeded"
    assert counts[-1] == 2


def test_one_key_is_one_job_and_another_picture_under_it_is_an_error(client: CutoutClient) -> None:
    first = client.submit("once", front=picture(32), idempotency_key="key-once")
    assert client.submit("once", front=picture(32), idempotency_key="key-once").job_id == first.job_id
    assert client.wait(first.job_id).status == "succeeded"
    assert client.submit("once", front=picture(32), idempotency_key="key-once").status == "succeeded"
    with pytest.raises(CutoutError) as caught:
        client.submit("once", front=picture(33), idempotency_key="key-once")
    assert caught.value.code == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("content", "limit_s", "status", "code"),
    [(b"no picture", None, "failed", "source_not_an_image"), (picture(34), 1, "expired", "job_expired")],
)
def test_a_key_whose_job_has_failed_or_expired_gives_that_job(
    stack: Stack, client: CutoutClient, content: bytes, limit_s: int | None, status: str, code: str
) -> None:
    def send() -> Job:
        return client.submit(5, front=content, idempotency_key=f"key-{status}", cancel_after_s=limit_s)

    with gate(stack, "hold-rmbg"):
        first = send()
        assert client.wait(first.job_id, timeout_s=30).status == status
    again = send()
    assert (again.job_id, again.status) == (first.job_id, status)
    with pytest.raises(CutoutError) as caught:
        again.raise_for_status()
    assert caught.value.code == code


def test_a_canceled_job_ends_and_cannot_be_canceled_again_after_its_end(stack: Stack, client: CutoutClient) -> None:
    with gate(stack, "hold-rmbg"):
        job = client.submit("stop", front=picture(35))
        assert client.cancel(job.job_id).status == "canceled"
    with pytest.raises(CutoutError) as caught:
        client.wait(job.job_id).raise_for_status()
    assert caught.value.code == "job_canceled"
    with pytest.raises(CutoutError) as caught:
        client.cancel(ended(client))
    assert caught.value.code == "job_already_final"


def test_a_deleted_job_is_gone_with_its_files(stack: Stack, client: CutoutClient, tmp_path: Path) -> None:
    job = client.get(ended(client))
    client.delete(job.job_id)
    for call in (client.get, client.delete, client.wait):
        with pytest.raises(CutoutError) as caught:
            call(job.job_id)
        assert caught.value.code == "job_not_found"
    with pytest.raises(CutoutError) as caught:
        client.download(job, tmp_path)
    assert caught.value.code in ("output_not_found", "output_expired")


def test_jobs_are_listed_page_by_page_newest_first(client: CutoutClient) -> None:
    made = [client.process("listed", back=picture(40 + n), options={"models": ["rmbg"]}).job_id for n in range(5)]
    assert [job.job_id for job in client.list(id="listed", page=2)] == made[::-1]
    assert [job.job_id for job in client.list(id="listed", status=["failed", "canceled"])] == []
    assert {job.status for job in client.list(status="succeeded", page=100)} == {"succeeded"}


def test_a_retry_computes_only_what_failed(stack: Stack, client: CutoutClient) -> None:
    with gate(stack, "break-birefnet"):
        old = client.process("mend", front=picture(50))
    assert (old.status, list(old.failed_cells)) == ("partial", ["front_birefnet"])
    new = client.wait(client.retry(old.job_id).job_id)
    assert (new.status, new.retry_of) == ("succeeded", old.job_id)
    with pytest.raises(CutoutError) as caught:
        client.retry(new.job_id)
    assert caught.value.code == "nothing_to_retry"
    named = client.wait(client.retry(old.job_id, "front_birefnet").job_id)
    assert (named.status, named.retry_of) == ("succeeded", old.job_id)


def run_one(client: CutoutClient, out: Path, source: Path) -> Outcome:
    with State(out) as state:
        return Batch(client, out, state, {}).do(Pair("one", front=source), lambda done: None)


def test_a_second_run_retries_the_failed_cells_of_a_partial_job(
    stack: Stack, client: CutoutClient, tmp_path: Path
) -> None:
    source = tmp_path / "f.png"
    source.write_bytes(picture(51))
    with gate(stack, "break-birefnet"):
        first = run_one(client, tmp_path / "out", source)
    assert (first.status, first.is_good) == ("partial", False)
    second = run_one(client, tmp_path / "out", source)
    assert second.is_good
    assert client.get(second.rows[0].job_id).retry_of == first.rows[0].job_id
    assert len(list((tmp_path / "out").glob("one_front_*.png"))) == 2


def test_a_run_killed_between_request_and_answer_makes_no_second_job(
    stack: Stack, client: CutoutClient, tmp_path: Path
) -> None:
    """Given a state file that a run left which was killed right after it had sent its request, when the command runs
    again, then the job that arrived is taken up."""
    source, out = tmp_path / "f.png", tmp_path / "out"
    source.write_bytes(picture(52))
    run_one(client, out, source)
    before = stack.jobs()
    with State(out) as state:
        entry = state.get("one")
        assert entry is not None
        state.record(Entry("one", entry.fingerprint, "sending", key=entry.key))
    outcome = run_one(client, out, source)
    assert outcome.is_good
    assert outcome.rows[0].job_id == entry.job_id
    assert stack.jobs() == before


def test_the_command_lists_and_cancels(stack: Stack, client: CutoutClient, tmp_path: Path) -> None:
    with gate(stack, "hold-rmbg"):
        job = client.submit("cli", front=picture(53))
        status, log = stack.run(tmp_path, "jobs", "--id", "cli")
        assert status == 0
        assert job.job_id in log
        status, log = stack.run(tmp_path, "cancel", job.job_id)
        assert (status, log) == (0, f"{job.job_id}: canceled\n")
    wait_for("its end", lambda: client.get(job.job_id).is_final, stack.worker)
