"""Stopping in order: under load nothing is lost, clients that wait are told where to look, and the exit is clean."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import requests

from tests.chaos.clients import Clients
from tests.chaos.invariant import check_invariant
from tests.chaos.stack import Accepted, Stack
from tests.processes import wait_for

RESTARTS = 10
GRACE_S = 20


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, SHUTDOWN_GRACE_S=str(GRACE_S), CHAOS_PASS_S="0.05") as stack:
        yield stack.start()


def _has_more(clients: Clients, count: int) -> bool:
    return len(clients.accepted) > count


def test_ten_restarts_in_a_row_under_load_lose_nothing(stack: Stack) -> None:
    assert stack.api is not None
    with Clients(stack, 3, seed=6) as clients:
        for turn in range(RESTARTS):
            seen = len(clients.accepted)
            wait_for("load", partial(_has_more, clients, seen + 2))
            if turn % 2:
                assert stack.api.terminate(GRACE_S) == 0, stack.api.log
                stack.start_api()
            else:
                worker = stack.workers["worker-1"]
                assert worker.terminate(GRACE_S) == 0, worker.log
                stack.start_worker()
            stack.wait_ready()
    ended = check_invariant(stack, clients.accepted)
    assert ended == {"succeeded": len(clients.accepted)}
    assert clients.duplicates == 0
    # Nobody was cut off by the worker's stop, so nobody is suspected of it.
    assert stack.logged("step_alone") == []


def test_a_stopping_api_answers_waiting_clients_with_202_and_where_to_look(stack: Stack) -> None:
    stack.hold("rmbg")
    sent = [stack.form() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(requests.post, f"{stack.url}/process", timeout=60, **form) for form, _ in sent]
        wait_for("all to wait", lambda: len(stack.under_way()) == 4)
        assert stack.api is not None
        began = time.monotonic()
        assert stack.api.terminate(GRACE_S) == 0, stack.api.log
        assert time.monotonic() - began < GRACE_S / 2, "the waits used up the grace time"
        replies = [future.result(10) for future in waiting]
    assert [reply.status_code for reply in replies] == [202] * 4
    assert stack.get("/live") == 0
    stack.start_api()
    stack.wait_ready()
    stack.release("rmbg")
    assert {stack.get(reply.headers["Location"]) for reply in replies} == {200}
    jobs = [Accepted(reply.json()["job_id"], sizes) for reply, (_, sizes) in zip(replies, sent, strict=True)]
    assert check_invariant(stack, jobs) == {"succeeded": 4}


def test_a_worker_whose_grace_is_over_hands_back_what_runs_and_nobody_is_suspected(stack: Stack) -> None:
    stack.workers["worker-1"].kill()
    worker = stack.start_worker(SHUTDOWN_GRACE_S="1")
    stack.wait_ready()
    stack.hold("rmbg")
    jobs = [stack.post("front", "back"), stack.post()]
    stack.wait_entered("rmbg", worker)
    assert worker.terminate(GRACE_S) == 1
    assert stack.under_way() == set()
    stack.release("rmbg")
    stack.start_worker()
    assert check_invariant(stack, jobs) == {"succeeded": 2}
    assert stack.logged("step_alone") == []
