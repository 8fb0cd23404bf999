"""A picture that kills its worker, and a device that hangs: the job ends, and the others are none the worse for it."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from shared.jobs import JobStatus
from tests.chaos.invariant import check_invariant
from tests.chaos.stack import Stack, poison
from tests.processes import wait_for


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, MAX_DELIVERIES="2") as stack:
        yield stack.start()


def test_a_job_that_kills_every_worker_is_given_up_and_its_neighbours_are_not(stack: Stack) -> None:
    """Given a poisonous job among others, all in the worker's hands when it dies, then only that one fails."""
    stack.hold("write")
    jobs = [stack.post(), stack.post("front", "back"), stack.post()]
    stack.wait_entered("write", stack.workers["worker-1"])
    bad = stack.post(data=poison())
    assert stack.workers["worker-1"].popen.wait(30) == -signal.SIGKILL
    assert stack.under_way() == {job.job_id for job in (*jobs, bad)}
    stack.release("write")
    deaths = 1
    while not stack.store.get(bad.job_id).is_final:
        worker = stack.start_worker()
        while worker.popen.poll() is None and not stack.store.get(bad.job_id).is_final:
            time.sleep(0.05)  # the test's own time limit is the deadline
        deaths += worker.popen.poll() is not None
    assert deaths == 2  # MAX_DELIVERIES
    jobs += [bad, stack.post()]
    assert check_invariant(stack, jobs) == {"succeeded": 4, "failed": 1}
    job = stack.store.get(bad.job_id)
    assert job.error is not None
    assert job.error["code"] == "worker_crashed"
    assert job.cells["front_rmbg"].error == job.error


def test_a_wedged_device_makes_health_503_ends_its_worker_and_the_job(stack: Stack) -> None:
    """Given a forward pass that never ends, then the worker says so and ends, and the next one does the rest."""
    stack.workers["worker-1"].kill()
    worker = stack.start_worker(DEVICE_TIMEOUT_S="1")
    stack.wait_ready()
    stack.hold("rmbg")
    wedged = stack.post(models='["rmbg", "birefnet"]')
    wait_for("an unhealthy service", lambda: stack.get("/health") == 503, timeout_s=30)
    assert stack.get("/live") == 200
    assert worker.popen.wait(30) == 1
    report = requests.get(f"{stack.url}/health", timeout=5).json()
    assert report["models"]["rmbg"]["status"] == "failed"

    stack.release("rmbg")
    stack.start_worker()
    stack.wait_ready()
    assert stack.get("/health") == 200
    ended = check_invariant(stack, [wedged, stack.post()])
    assert ended.total() == 2
    assert stack.store.get(wedged.job_id).status in (JobStatus.PARTIAL, JobStatus.FAILED)
    assert stack.store.get(wedged.job_id).cells["front_rmbg"].error["code"] == "device_failed"  # type: ignore[index]


def test_a_job_past_its_deadline_expires_although_its_pass_never_ends(stack: Stack) -> None:
    """Threads cannot be stopped by a time limit: the job ends without its thread."""
    stack.hold("rmbg")
    job = stack.post(Cancel_After="1s")
    stack.wait_entered("rmbg")
    wait_for("its end", lambda: stack.store.get(job.job_id).is_final, timeout_s=15)
    assert stack.store.get(job.job_id).status == JobStatus.EXPIRED
    stack.release("rmbg")
    assert check_invariant(stack, [job]) == {"expired": 1}
