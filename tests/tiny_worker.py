"""A real worker with a tiny engine: `python -m tests.tiny_worker`.

Everything is the real process (Celery, Redis, pipeline, PNGs) but the network: the engine paints its answer from its
input, so a test can tell that every cell got its own picture. TINY_GATE names a folder that steers it:

    TINY_GATE/hold-<model>     forward passes of that model wait until the file is gone
    TINY_GATE/entered-<model>  written when a pass of that model has begun
    TINY_GATE/break-<model>    forward passes of that model raise
    TINY_GATE/kill-<model>     forward passes of that model find the device lost
    TINY_GATE/exhaust-<model>  forward passes of that model find no room on the device
    TINY_GATE/trip-<model>     forward passes of that model meet a mistake of ours
    TINY_GATE/passes-<model>   one byte for each pass of that model that was begun

TINY_WEIGHTS is the content that its weights claim to have.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import DeviceFailed, InferenceFailed, OutOfDeviceMemory
from shared.settings import Settings, load_settings
from worker.app import run_worker
from worker.cells import LoadedEngine
from worker.heartbeat import Heartbeat

INPUT_SIZE = 32


class TinyEngine:
    """Bright pixels are foreground for `rmbg`, reddish ones for `birefnet`."""

    def __init__(self, name: str, gate: Path | None) -> None:
        self.name = name
        self.input_size = INPUT_SIZE
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.weights_id = os.environ.get("TINY_WEIGHTS", "painted")
        self._gate = gate

    def masks(self, batch: Tensor) -> Tensor:
        if self._gate is not None:
            (self._gate / f"entered-{self.name}").touch()
            with (self._gate / f"passes-{self.name}").open("ab") as passes:
                passes.write(b".")
            while (self._gate / f"hold-{self.name}").exists():
                time.sleep(0.01)
            if (self._gate / f"break-{self.name}").exists():
                raise InferenceFailed(f"{self.name} was told to fail")
            if (self._gate / f"kill-{self.name}").exists():
                raise DeviceFailed("the device was told to fail")
            if (self._gate / f"exhaust-{self.name}").exists():
                raise OutOfDeviceMemory("the device was told to have no room")
            if (self._gate / f"trip-{self.name}").exists():
                raise LookupError("a mistake of ours")
        return paint(self.name, batch)


def paint(model: str, batch: Tensor) -> Tensor:
    """(B, 3, S, S) network inputs -> (B, S, S) masks of 0 and 1."""
    value = batch.mean(dim=1) if model == "rmbg" else batch[:, 0] - batch[:, 2]
    return (value > 0).float()


def load_tiny(settings: Settings, heartbeat: Heartbeat) -> Mapping[str, LoadedEngine]:
    gate = os.environ.get("TINY_GATE")
    engines = {name: TinyEngine(name, Path(gate) if gate else None) for name in settings.models}
    for name in engines:
        heartbeat.model(name, status="ready", device="cpu", dtype="float32", profile="tiny", licence="MIT")
    return engines


if __name__ == "__main__":
    sys.exit(run_worker(load_settings(), load_tiny))
