"""The device as a shared resource: cells of all threads meet here, one forward pass runs at a time.

This is the seam for batching: a cell hands over one input and gets one mask, and does not know what it was computed
together with.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class MaskEngine(Protocol):
    """What the queue needs of an engine."""

    def masks(self, batch: Tensor) -> Tensor: ...


class DeviceQueue:
    """Runs one forward pass at a time, in the order of arrival as far as the lock is fair."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def mask(self, engine: MaskEngine, x: Tensor, raise_if_ended: Callable[[], None]) -> Tensor:
        """The mask of one input: (1, 3, S, S) -> (S, S) float32 in 0..1. Errors are the engine's.

        Args:
            raise_if_ended: called when the input's turn has come; what it raises goes to the caller, and the device
                is not used: a cell may have waited so long that its job was canceled.
        """
        with self._lock:
            raise_if_ended()
            return engine.masks(x)[0]
