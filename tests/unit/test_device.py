"""The device's queue with real networks: neighbours, dropped inputs, defaults."""

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared.errors import JobCanceled
from shared.settings import load_settings
from tests.conftest import eventually
from worker.batcher import BatchLimits
from worker.device import DeviceQueue, batch_limits
from worker.engine import Engine
from worker.registry import resolve_models

ROOT = Path(__file__).resolve().parents[2]
#: Largest difference of a mask (0..1) that a neighbour may make in fp32: a tenth of an 8-bit level. Not zero, because a
#: product of other size may be summed in another order.
TOLERANCE = 0.1 / 255


class Recorded:
    """An engine that keeps the sizes of its batches, and waits in its first one."""

    def __init__(self, engine: Engine) -> None:
        self.device, self.engine = engine.device, engine
        self.sizes: list[int] = []
        self.entered, self.go = threading.Event(), threading.Event()

    def masks(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        self.entered.set()
        assert self.go.wait(60)
        return self.engine.masks(batch)


def starter() -> Engine:
    settings = load_settings(models_dir=ROOT / "models", model_profile="starter", models="rmbg")
    (spec,) = resolve_models(settings)
    return Engine(spec, torch.device("cpu"), use_fp16=False)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return starter()


def inputs(count: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 6, 6, generator=generator)
    x = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return list(torch.split(x, 1))


def test_a_mask_does_not_depend_on_what_it_was_computed_with(engine: Engine) -> None:
    """Given the real starter network, when four pictures are one batch, then each mask is that of the picture alone."""
    recorded, items = Recorded(engine), inputs(5, engine.input_size)
    alone = [engine.masks(item)[0] for item in items]
    masks: dict[int, Tensor] = {}

    def cell(number: int) -> None:
        masks[number] = queue.mask("rmbg", items[number])

    with DeviceQueue({"rmbg": recorded}, BatchLimits(4, 60, 16)) as queue:
        threads = [threading.Thread(target=cell, args=(number,)) for number in range(5)]
        threads[0].start()
        assert recorded.entered.wait(60)
        for thread in threads[1:]:
            thread.start()
        eventually(lambda: queue.waiting == 4)
        recorded.go.set()
        for thread in threads:
            thread.join(60)
    assert recorded.sizes == [1, 4]
    for number in range(5):
        torch.testing.assert_close(masks[number], alone[number], atol=TOLERANCE, rtol=0)
    assert (alone[1] - alone[2]).abs().max() > 10 * TOLERANCE  # different pictures do differ


def test_a_cell_whose_job_ended_while_it_waited_does_not_get_the_device(engine: Engine) -> None:
    def ended() -> None:
        raise JobCanceled("the job is canceled")

    recorded, items = Recorded(engine), inputs(1, engine.input_size)
    outcomes: list[BaseException] = []

    def second() -> None:
        try:
            queue.mask("rmbg", items[0], ended)
        except JobCanceled as exc:
            outcomes.append(exc)

    with DeviceQueue({"rmbg": recorded}, BatchLimits(1, 0, 16)) as queue:
        threads = [threading.Thread(target=queue.mask, args=("rmbg", items[0])), threading.Thread(target=second)]
        threads[0].start()
        assert recorded.entered.wait(60)
        threads[1].start()
        eventually(lambda: queue.waiting == 1)
        recorded.go.set()
        for thread in threads:
            thread.join(60)
    assert recorded.sizes == [1]
    assert len(outcomes) == 1


def test_the_default_batch_is_the_device_s_and_a_setting_overrides_it() -> None:
    assert batch_limits(load_settings(), "cpu").max_batch == 1
    assert batch_limits(load_settings(), "cuda").max_batch == 4
    own = load_settings(max_batch=3, max_batch_wait_ms=20)
    assert batch_limits(own, "cpu") == BatchLimits(3, 0.02, 64, stuck_s=900)
