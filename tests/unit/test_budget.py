"""Pixels in flight."""

import threading

from tests.processes import wait_for
from worker.budget import PixelBudget


def test_no_more_pixels_are_in_flight_than_allowed() -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    now, most = 0, 0

    def work(pixels: int) -> None:
        nonlocal now, most
        for _ in range(50):
            with budget.hold(pixels):
                with lock:
                    now += pixels
                    most = max(most, now)
                with lock:
                    now -= pixels

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (10, 40, 60, 90, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert 0 < most <= 100


def test_a_picture_larger_than_the_budget_is_worked_on_alone() -> None:
    budget = PixelBudget(100)
    order: list[str] = []
    with budget.hold(50):
        large = threading.Thread(target=lambda: _append(budget, 500, order, "large"))
        large.start()
        assert order == []
    large.join(10)
    wait_for("the large picture", lambda: order == ["large"])


def test_small_pictures_do_not_pass_a_large_one_for_ever() -> None:
    """Given a large picture that waits, when a small one comes that would fit, then it waits behind the large one."""
    budget, order = PixelBudget(100), list[str]()
    with budget.hold(50):
        threads = []
        for count, (word, pixels) in enumerate((("large", 100), ("small", 10)), start=1):
            threads.append(threading.Thread(target=_append, args=(budget, pixels, order, word)))
            threads[-1].start()
            wait_for(word, lambda count=count: len(budget._queue) == count)  # type: ignore[misc]
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == ["large", "small"]


def test_an_error_inside_gives_its_pixels_back() -> None:
    budget = PixelBudget(10)
    for _ in range(3):
        try:
            with budget.hold(10):
                raise RuntimeError
        except RuntimeError:
            pass
    with budget.hold(10):
        pass


def _append(budget: PixelBudget, pixels: int, order: list[str], word: str) -> None:
    with budget.hold(pixels):
        order.append(word)
