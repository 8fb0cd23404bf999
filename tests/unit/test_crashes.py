"""Who is suspected of killing a worker, and what that means for it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.errors import WorkerCrashed
from shared.jobs import JobStatus, Source, new_job, new_job_id
from shared.store import Store
from tests.conftest import eventually
from worker.crashes import CrashGuard

LIMIT = 2


@pytest.fixture
def guard(store: Store) -> CrashGuard:
    return CrashGuard(store, "worker-1", LIMIT)


@pytest.fixture
def make(store: Store) -> Callable[[], str]:
    def make() -> str:
        source = Source(kind="url", url="https://example.com/a.png")
        job = new_job(job_id=new_job_id(), client_id=7, sources={"front": source}, models=("rmbg",))
        store.create(job)
        return job.job_id

    return make


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def die(store: Store, *job_ids: str) -> list[str]:
    """A worker begins steps of these jobs and is never heard of again."""
    for job_id in job_ids:
        store.under_way.begin("worker-1", job_id, is_alone=True)
    return store.under_way.count_crash("worker-1")


def test_a_death_counts_once_for_every_open_job_that_was_under_way(store: Store, make: Callable[[], str]) -> None:
    job_ids = [make() for _ in range(3)]
    store.finish(job_ids[2], JobStatus.CANCELED)
    # Four cells of one job died together: still one death.
    assert sorted(die(store, *job_ids, *[job_ids[0]] * 3)) == sorted(job_ids[:2])
    assert store.under_way.begin("worker-1", job_ids[0]) == 1
    assert store.under_way.count_crash("worker-1") == []  # a suspected job was not noted, for it did not run


def test_what_has_ended_or_was_handed_back_is_not_suspected(
    store: Store, guard: CrashGuard, make: Callable[[], str]
) -> None:
    ended, raised, handed_back = make(), make(), make()
    with guard.step(ended):
        pass
    with pytest.raises(ZeroDivisionError), guard.step(raised):
        _ = 1 / 0
    assert store.under_way.count_crash("worker-1") == []
    store.under_way.begin("worker-1", handed_back)
    store.under_way.forget("worker-1")
    assert store.under_way.count_crash("worker-1") == []


def test_steps_of_one_job_that_overlap_are_one_note_which_lasts_until_the_last_of_them_ends(
    store: Store, guard: CrashGuard, make: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, begun = make(), []
    real = store.under_way.begin

    def begin(*arguments: Any, **named: Any) -> int:
        begun.append(arguments)
        return real(*arguments, **named)

    monkeypatch.setattr(store.under_way, "begin", begin)
    first = guard.step(job_id)
    first.__enter__()
    with guard.step(job_id):
        first.__exit__(None, None, None)  # the step that told Redis ends before this one
        assert len(begun) == 1
        with guard.step(job_id):
            pass
        assert store.under_way.count_crash("worker-1") == [job_id]
    with guard.step(make()):
        pass
    assert store.under_way.count_crash("worker-1") == []


def test_a_job_is_given_up_after_so_many_deaths(store: Store, guard: CrashGuard, make: Callable[[], str]) -> None:
    job_id = make()
    for _ in range(LIMIT):
        with guard.step(job_id):
            pass  # still tried
        die(store, job_id)
    with pytest.raises(WorkerCrashed, match="MAX_DELIVERIES"), guard.step(job_id):
        pytest.fail("it was run again")


def test_a_suspected_job_runs_alone(
    store: Store, guard: CrashGuard, make: Callable[[], str], threads: ThreadPoolExecutor
) -> None:
    """Given an ordinary step in its middle, then a suspected one waits for its end, and later ones for the suspect."""
    ordinary, suspect, later = make(), make(), make()
    die(store, suspect)
    order: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def run(job_id: str, *, waits: bool = False) -> None:
        with guard.step(job_id):
            order.append(job_id)
            if waits:
                inside.set()
                assert go.wait(20)
                order.append(job_id)

    first = threads.submit(run, ordinary, waits=True)
    assert inside.wait(20)
    second = threads.submit(run, suspect)
    eventually(lambda: guard._turns._waiting_alone == 1)
    third = threads.submit(run, later)
    go.set()
    for step in (first, second, third):
        step.result(20)
    assert order == [ordinary, ordinary, suspect, later]


def test_two_suspects_run_one_after_the_other(
    store: Store, guard: CrashGuard, make: Callable[[], str], threads: ThreadPoolExecutor
) -> None:
    suspects = [make(), make()]
    die(store, *suspects)
    running: list[str] = []

    def run(job_id: str) -> None:
        with guard.step(job_id):
            running.append(job_id)
            assert running == [job_id]
            running.remove(job_id)

    for step in [threads.submit(run, job_id) for job_id in suspects * 10]:
        step.result(20)
    # Only the one that was running is to blame for a death.
    assert store.under_way.count_crash("worker-1") == []
