"""Batches: when they go, what is in them, and what happens when they fail. The clock is ours; nothing sleeps."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future

import pytest

from shared.errors import DeviceFailed, DeviceQueueFull, InferenceFailed, JobCanceled, OutOfDeviceMemory
from worker.batcher import Batcher, BatchLimits

WAIT_S = 0.01


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Device:
    """A recorded device. An item's outcome is the item and its model; `faults` decide about a batch before it runs."""

    def __init__(self, max_batch: int = 4, max_waiting: int = 100) -> None:
        self.clock = Clock()
        self.batches: list[tuple[str, list[int]]] = []
        self.faults: list[Callable[[list[int]], None]] = []
        self.deaths: list[str] = []
        limits = BatchLimits(max_batch, WAIT_S, max_waiting, recover_s=60, stuck_s=30)
        self.batcher: Batcher[int, str] = Batcher(self.run, limits, clock=self.clock, on_death=self.deaths.append)

    def run(self, model: str, items: list[int]) -> Sequence[str]:
        self.batches.append((model, items))
        for fault in self.faults:
            fault(items)
        return [f"{model}:{item}" for item in items]

    def submit(self, model: str, *items: int) -> "list[Future[str]]":
        return [self.batcher.submit(model, item) for item in items]

    def occupy(self) -> None:
        """Let something wait already, so that what comes now does not find the device idle."""
        first = self.batcher.submit("first", 0)
        assert not first.done()

    def run_all(self) -> None:
        self.clock.now += WAIT_S
        while self.batcher.step():
            pass


@pytest.fixture
def device() -> Device:
    return Device()


class TestWhenABatchGoes:
    def test_an_item_that_finds_the_device_idle_goes_at_once(self, device: Device) -> None:
        (future,) = device.submit("rmbg", 1)
        assert device.batcher.step()
        assert future.result(0) == "rmbg:1"

    def test_items_behind_others_wait_for_more(self, device: Device) -> None:
        device.occupy()
        device.submit("rmbg", 1, 2)
        assert device.batcher.step()  # the first
        assert not device.batcher.step()
        device.clock.now += WAIT_S * 0.9
        device.submit("rmbg", 3)
        assert not device.batcher.step()
        device.clock.now += WAIT_S * 0.2  # the oldest has waited long enough, the youngest has not
        assert device.batcher.step()
        assert device.batches[-1] == ("rmbg", [1, 2, 3])

    def test_a_full_batch_does_not_wait(self, device: Device) -> None:
        device.occupy()
        device.submit("rmbg", 1, 2, 3, 4, 5)
        assert device.batcher.step()
        assert device.batcher.step()
        assert device.batches[-1] == ("rmbg", [1, 2, 3, 4])
        assert not device.batcher.step()

    def test_everybody_gets_their_own_outcome(self, device: Device) -> None:
        futures = [future for model in ("rmbg", "birefnet") for future in device.submit(model, *range(7))]
        device.run_all()
        expected = [f"{model}:{item}" for model in ("rmbg", "birefnet") for item in range(7)]
        assert [future.result(0) for future in futures] == expected

    def test_a_batch_is_of_one_model(self, device: Device) -> None:
        device.occupy()
        for item in range(4):
            device.submit("rmbg", item)
            device.submit("birefnet", item)
        device.run_all()
        assert sorted(device.batches[1:]) == [("birefnet", [0, 1, 2, 3]), ("rmbg", [0, 1, 2, 3])]

    def test_the_model_whose_oldest_item_has_waited_longest_goes_first(self, device: Device) -> None:
        """Given a flood for one model, when one item for the other comes, then what comes after it goes after it."""
        device.occupy()
        device.submit("rmbg", *range(8))
        device.clock.now += 0.001
        device.submit("birefnet", 100)
        device.clock.now += 0.001
        device.submit("rmbg", *range(8, 40))
        device.run_all()
        place = device.batches.index(("birefnet", [100]))
        assert [batch for batch in device.batches[:place] if batch[0] == "rmbg"] == [
            ("rmbg", [0, 1, 2, 3]),
            ("rmbg", [4, 5, 6, 7]),
        ]


class TestABoundedQueue:
    def test_full_is_an_answer(self) -> None:
        device = Device(max_waiting=3)
        device.submit("rmbg", 1, 2)
        device.submit("birefnet", 1)
        with pytest.raises(DeviceQueueFull, match="3 pictures wait"):
            device.submit("rmbg", 3)
        device.run_all()
        assert device.batcher.waiting() == 0
        device.submit("rmbg", 3)

    def test_an_item_that_had_to_wait_is_asked_at_its_turn_whether_it_is_still_wanted(self, device: Device) -> None:
        asked: list[int] = []

        def check(item: int, error: Exception | None = None) -> Callable[[], None]:
            def ask() -> None:
                asked.append(item)
                if error is not None:
                    raise error

            return ask

        first = device.batcher.submit("rmbg", 0, check(0, InferenceFailed("never asked")))
        gone = device.batcher.submit("rmbg", 1, check(1, JobCanceled("gone")))
        last = device.batcher.submit("rmbg", 2, check(2))
        device.run_all()
        assert asked == [1, 2]
        assert device.batches == [("rmbg", [0, 2])]
        assert [first.result(0), last.result(0)] == ["rmbg:0", "rmbg:2"]
        with pytest.raises(JobCanceled):
            gone.result(0)

    def test_a_batch_that_nobody_wants_does_not_use_the_device(self, device: Device) -> None:
        def ended() -> None:
            raise JobCanceled("gone")

        device.occupy()
        futures = [device.batcher.submit("rmbg", item, ended) for item in range(3)]
        device.run_all()
        assert device.batches == [("first", [0])]
        assert all(isinstance(future.exception(0), JobCanceled) for future in futures)

    def test_a_canceled_item_is_not_computed(self, device: Device) -> None:
        futures = device.submit("rmbg", 1, 2, 3)
        assert futures[1].cancel()
        device.run_all()
        assert device.batches == [("rmbg", [1, 3])]
        with pytest.raises(CancelledError):
            futures[1].result(0)


class TestFailingBatches:
    def test_one_bad_item_does_not_fail_its_batch(self, device: Device) -> None:
        def fault(items: list[int]) -> None:
            if 2 in items:
                raise InferenceFailed("2 is bad")

        device.faults.append(fault)
        futures = device.submit("rmbg", 1, 2, 3)
        device.run_all()
        assert [futures[0].result(0), futures[2].result(0)] == ["rmbg:1", "rmbg:3"]
        with pytest.raises(InferenceFailed, match="2 is bad"):
            futures[1].result(0)

    def test_too_few_outcomes_are_an_error_of_every_item_alone(self, device: Device) -> None:
        device.run = lambda model, items: [] if len(items) > 1 else ["alone"]  # type: ignore[method-assign]
        device.batcher._run = device.run
        futures = device.submit("rmbg", 1, 2)
        device.run_all()
        assert [future.result(0) for future in futures] == ["alone", "alone"]

    def test_out_of_memory_halves_the_batch_remembers_and_recovers(self) -> None:
        device = Device(max_batch=8)

        def fault(items: list[int]) -> None:
            if len(items) > 2:
                raise OutOfDeviceMemory("no room")

        def sizes_of_16() -> list[int]:
            start = len(device.batches)
            futures = device.submit("rmbg", *range(16))
            device.run_all()
            assert [future.result(0) for future in futures] == [f"rmbg:{item}" for item in range(16)]
            return [len(items) for _, items in device.batches[start:]]

        device.faults.append(fault)
        assert sizes_of_16() == [8, 4, 2, 2, 4, 2, 2, *[2] * 4]
        assert sizes_of_16() == [2] * 8
        device.faults.clear()
        device.clock.now += 60
        assert max(sizes_of_16()) == 4
        device.clock.now += 60
        assert sizes_of_16() == [8, 8]

    def test_out_of_memory_for_a_single_item_is_its_outcome(self, device: Device) -> None:
        def fault(items: list[int]) -> None:
            raise OutOfDeviceMemory("no room")

        device.faults.append(fault)
        (future,) = device.submit("rmbg", 1)
        device.run_all()
        with pytest.raises(OutOfDeviceMemory):
            future.result(0)
        assert not device.deaths


@pytest.mark.filterwarnings("error")
class TestTheThread:
    def test_it_drains_before_it_ends(self, device: Device) -> None:
        futures = device.submit("rmbg", *range(10))
        device.batcher.start()
        device.batcher.close(10)
        assert not device.batcher.is_alive
        assert [future.result(0) for future in futures] == [f"rmbg:{item}" for item in range(10)]
        with pytest.raises(DeviceFailed, match="stopping"):
            device.submit("rmbg", 11)

    def test_items_from_many_threads_get_their_own(self) -> None:
        device = Device()
        device.batcher._clock = __import__("time").monotonic
        device.batcher.start()
        wrong: list[object] = []

        def client(number: int) -> None:
            for item in range(50):
                model = ("rmbg", "birefnet")[item % 2]
                outcome = device.batcher.submit(model, number * 1000 + item).result(20)
                if outcome != f"{model}:{number * 1000 + item}":
                    wrong.append(outcome)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        device.batcher.close(10)
        assert wrong == []
        assert sum(len(items) for _, items in device.batches) == 300

    @pytest.mark.parametrize("fatal", [DeviceFailed("the card is gone"), SystemExit("a bug")])
    def test_no_item_is_left_without_an_outcome_when_it_dies(self, device: Device, fatal: BaseException) -> None:
        def fault(items: list[int]) -> None:
            raise fatal

        device.faults.append(fault)
        futures = [*device.submit("rmbg", *range(6)), *device.submit("birefnet", 1)]
        canceled = device.submit("birefnet", 2)
        canceled[0].cancel()
        device.batcher.start()
        for future in futures:
            with pytest.raises(DeviceFailed, match=str(fatal)):
                future.result(10)
        device.batcher.close(10)
        assert len(device.deaths) == 1
        assert str(fatal) in device.deaths[0]
        with pytest.raises(DeviceFailed, match=str(fatal)):
            device.submit("rmbg", 9)

    def test_a_batch_that_never_ends_is_given_up_and_nobody_waits_for_it(self, device: Device) -> None:
        """Given a device that hangs, when it has for too long, then all have their outcome, also if it comes back."""
        entered, go = threading.Event(), threading.Event()

        def fault(items: list[int]) -> None:
            entered.set()
            assert go.wait(30)

        device.faults.append(fault)
        futures = [*device.submit("rmbg", 1), *device.submit("birefnet", 2)]
        device.batcher._thread.start()  # without its watcher, whose clock is real
        assert entered.wait(10)
        device.clock.now += 30
        assert not device.batcher.give_up_if_stuck()
        device.clock.now += 1
        assert device.batcher.give_up_if_stuck()
        for future in futures:
            with pytest.raises(DeviceFailed, match="not answered for 30 s"):
                future.result(0)
        go.set()
        device.batcher.close(10)
        assert not device.batcher.is_alive
        assert len(device.deaths) == 1
