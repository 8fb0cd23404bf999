"""Where threads may run: on one core together, or with pixels in hand on all."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from worker import affinity
from worker.affinity import SMALL_PX, on_any_core, one_at_a_time, share_a_core
from worker.budget import PixelBudget

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="a process with cores to choose"
)
T = TypeVar("T")


@pytest.fixture(autouse=True)
def no_core_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins as a new process does."""
    monkeypatch.setattr(affinity, "_home", frozenset())
    monkeypatch.setattr(affinity, "_everywhere", frozenset())


def in_a_thread(call: Callable[[], T]) -> T:
    """The result of a call in a thread of its own: where a thread may run goes with it."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def cores() -> set[int]:
    return os.sched_getaffinity(0)


def test_a_thread_that_shares_a_core_and_those_it_starts_stay_on_that_one() -> None:
    everywhere = cores()

    def share() -> tuple[set[int], set[int]]:
        share_a_core()
        return cores(), in_a_thread(cores)

    own, started = in_a_thread(share)
    assert len(own) == 1
    assert started == own
    assert cores() == everywhere  # this thread has started the other, and was never told to share


@pytest.mark.parametrize("core", [min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))])
def test_the_setting_names_the_core(core: int) -> None:
    def share() -> set[int]:
        share_a_core(str(core))
        return cores()

    assert in_a_thread(share) == {core}


def test_a_core_that_the_process_may_not_use_is_replaced_by_one_that_it_may() -> None:
    def share() -> set[int]:
        share_a_core("4095")
        return cores()

    found = in_a_thread(share)
    assert len(found) == 1
    assert found < cores()


def test_any_leaves_threads_where_they_are() -> None:
    def share() -> set[int]:
        share_a_core("any")
        return cores()

    assert in_a_thread(share) == cores()


@pytest.mark.parametrize(("pixels", "is_free"), [(SMALL_PX + 1, True), (SMALL_PX, False)])
def test_work_on_a_large_picture_may_use_every_core_until_it_is_done(pixels: int, is_free: bool) -> None:
    everywhere = cores()

    def work() -> tuple[set[int], set[int], set[int]]:
        share_a_core()
        home = cores()
        with PixelBudget(10**6).hold(pixels):
            inside = cores()
        return home, inside, cores()

    home, inside, after = in_a_thread(work)
    assert inside == (everywhere if is_free else home)
    assert after == home


def test_work_inside_of_work_does_not_end_its_freedom() -> None:
    everywhere = cores()

    def work() -> set[int]:
        share_a_core()
        with on_any_core(SMALL_PX + 1):
            with on_any_core(SMALL_PX + 1):
                pass
            return cores()

    assert in_a_thread(work) == everywhere


def test_a_thread_that_does_not_share_keeps_its_cores() -> None:
    everywhere = cores()
    in_a_thread(share_a_core)
    with on_any_core(SMALL_PX + 1):
        assert cores() == everywhere
    assert cores() == everywhere


def test_few_pixels_wait_for_each_other_and_many_do_not() -> None:
    with one_at_a_time(SMALL_PX):
        got_in = threading.Event()

        def enter(pixels: int) -> None:
            with one_at_a_time(pixels):
                got_in.set()

        small = threading.Thread(target=enter, args=(SMALL_PX,))
        small.start()
        in_a_thread(lambda: enter(SMALL_PX + 1))
        assert got_in.is_set()
        got_in.clear()
        assert not got_in.wait(0.05)
    small.join()
    assert got_in.is_set()
