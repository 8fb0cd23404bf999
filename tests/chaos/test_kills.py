"""Every part is killed at every point of a job's way, and every job still ends, once, with whole files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from shared.jobs import CellStatus
from shared.messages import make_celery
from tests.chaos.invariant import check_invariant
from tests.chaos.stack import Accepted, Stack
from tests.chaos.worker import POINTS
from tests.processes import wait_for
from worker.app import make_worker_app
from worker.held import give_back


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("kills")) as stack:
        yield stack.start()


@pytest.fixture
def stack(running: Stack) -> Stack:
    """The stack with every part up and nothing held."""
    for path in running.gate.iterdir():
        path.unlink()
    for name, process in list(running.workers.items()):
        if name != "worker-1":
            process.kill()
            del running.workers[name]
        elif process.popen.poll() is not None:
            running.start_worker(name)
    running.wait_ready()
    return running


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_any_point_loses_no_job(stack: Stack, point: str) -> None:
    worker = stack.workers["worker-1"]
    stack.hold(point)
    jobs = [stack.post("front", "back"), stack.post()]
    stack.wait_entered(point, worker)
    worker.kill()
    if point == "write":
        assert list(stack.outputs.glob(".*.part")), "it was to be killed in mid-write"
    stack.release(point)
    stack.start_worker()
    assert check_invariant(stack, jobs) == {"succeeded": 2}


@pytest.mark.parametrize("point", POINTS)
def test_a_redis_killed_at_any_point_loses_no_job(stack: Stack, point: str) -> None:
    worker = stack.workers["worker-1"]
    outages = worker.log.count("Connection to broker lost")
    stack.hold(point)
    jobs = [stack.post("front", "back"), stack.post()]
    stack.wait_entered(point, worker)
    stack.redis.stop()
    stack.release(point)  # the worker goes on, without it
    wait_for("the outage to be noticed", lambda: worker.log.count("Connection to broker lost") > outages, worker)
    stack.redis.start()
    jobs.append(stack.post())
    assert check_invariant(stack, jobs) == {"succeeded": 3}
    assert worker.popen.poll() is None, "it was to live through this"


def test_an_api_killed_under_a_waiting_client_loses_nothing_and_its_key_finds_the_job(stack: Stack) -> None:
    stack.hold("rmbg")
    form, sizes = stack.form()
    headers = {"Idempotency-Key": "order-1"}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(requests.post, f"{stack.url}/process", headers=headers, timeout=60, **form)
        stack.wait_entered("rmbg")
        assert stack.api is not None
        stack.api.kill()
        with pytest.raises(requests.ConnectionError):
            waiting.result(30)
    stack.start_api()
    stack.wait_ready()
    stack.release("rmbg")
    reply = requests.post(f"{stack.url}/process", headers=headers, timeout=60, **form)
    assert (reply.status_code, reply.headers["Idempotent-Replayed"]) == (200, "true")
    assert check_invariant(stack, [Accepted(reply.json()["job_id"], sizes)]) == {"succeeded": 1}


def test_a_job_whose_message_was_lost_is_planned_again(stack: Stack) -> None:
    """Given a record without its message, as an API leaves it that dies between the two, then a worker misses it."""
    worker = stack.workers["worker-1"]
    worker.kill()
    job = stack.post()
    celery = make_celery(stack.settings, "test")
    with celery.connection_for_write() as connection:
        assert connection.default_channel.queue_purge("jobs") == 1
    stack.start_worker()
    assert check_invariant(stack, [job]) == {"succeeded": 1}
    assert "job_rescued" in stack.workers["worker-1"].log


def test_the_whole_stack_killed_at_once_loses_nothing(stack: Stack) -> None:
    stack.hold("write")
    jobs = [stack.post("front", "back") for _ in range(6)]
    stack.wait_entered("write", stack.workers["worker-1"])
    stack.kill_everything()
    stack.release("write")
    stack.start()
    assert check_invariant(stack, jobs) == {"succeeded": 6}


def _cells_begun(stack: Stack, jobs: list[Accepted]) -> int:
    cells = [cell for job in jobs for cell in stack.store.get(job.job_id).cells.values()]
    return sum(cell.status == CellStatus.PROCESSING for cell in cells)


def test_two_workers_that_get_the_same_cells_deliver_them_once(stack: Stack) -> None:
    """Given a worker that is taken for dead while it computes, then another does the same, and the job ends once."""
    stack.start_worker("worker-2")
    stack.wait_ready("worker-2")
    stack.hold("rmbg")
    jobs = [stack.post("front", "back") for _ in range(2)]
    # A cell that was begun has its message in hand; that one has come to the gate says nothing of the others.
    wait_for("all four cells", lambda: _cells_begun(stack, jobs) == 4)
    counts = [give_back(make_worker_app(stack.settings), stack.store, name)[0] for name in ("worker-1", "worker-2")]
    assert sum(counts) >= 4
    stack.release("rmbg")
    assert check_invariant(stack, jobs) == {"succeeded": 2}


def test_the_work_of_a_worker_that_never_comes_back_is_done_by_another(stack: Stack) -> None:
    stack.hold("rmbg")
    job = stack.post()
    stack.wait_entered("rmbg", stack.workers["worker-1"])
    stack.workers["worker-1"].kill()
    stack.release("rmbg")
    stack.start_worker("worker-2")
    assert check_invariant(stack, [job]) == {"succeeded": 1}
    assert '"worker": "worker-1"' in stack.workers["worker-2"].log
