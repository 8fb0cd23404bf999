"""The device as a shared resource: cells of all threads meet here, one batch runs at a time.

A cell hands over one input and gets one mask, and does not know what it was computed together with.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from shared.settings import Settings
from worker.batcher import Batcher, BatchLimits

#: Default of MAX_BATCH. On two cores a batch of 2 or 4 takes 2 or 4 times as long as one picture (docs/performance.md),
#: so waiting for one would only add to everybody's latency.
_DEFAULT_BATCH = {"cpu": 1, "cuda": 4}


class MaskEngine(Protocol):
    """What the queue needs of an engine."""

    device: torch.device

    def masks(self, batch: Tensor) -> Tensor: ...


class DeviceQueue:
    """Batches inputs per model and computes them on a thread of its own; a context manager that drains at its end."""

    def __init__(
        self,
        engines: Mapping[str, MaskEngine],
        limits: BatchLimits,
        on_death: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`on_death` is called once, on a thread of the queue's own, when nothing can be computed any more."""
        self._engines = engines
        self._batcher: Batcher[Tensor, Tensor] = Batcher(self._run, limits, on_death=on_death)

    def __enter__(self) -> "DeviceQueue":
        self._batcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher.close()

    @property
    def waiting(self) -> int:
        """How many inputs wait."""
        return self._batcher.waiting()

    def mask(self, model: str, x: Tensor, raise_if_ended: Callable[[], None] = lambda: None) -> Tensor:
        """The mask of one input.

        Args:
            x: (1, 3, S, S), of the model's device and dtype.
            raise_if_ended: called when the turn of an input that had to wait has come; what it raises goes to the
                caller, and the device is not used: a cell may have waited so long that its job was canceled.
        Returns:
            (S, S) float32 in 0..1.
        Raises:
            DeviceQueueFull, DeviceFailed, and the engine's errors.
        """
        return self._batcher.submit(model, x, raise_if_ended).result()

    def _run(self, model: str, items: list[Tensor]) -> list[Tensor]:
        batch = items[0] if len(items) == 1 else torch.cat(items)
        return list(self._engines[model].masks(batch).unbind(0))


def batch_limits(settings: Settings, device_type: str) -> BatchLimits:
    """How batches are made on this kind of device ("cpu", "cuda")."""
    return BatchLimits(
        max_batch=settings.max_batch or _DEFAULT_BATCH.get(device_type, 1),
        max_wait_s=settings.max_batch_wait_ms / 1000,
        max_waiting=settings.max_device_queue,
        stuck_s=settings.device_timeout_s,
    )
