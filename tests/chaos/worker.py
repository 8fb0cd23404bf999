"""A real worker that can be stopped at an exact point: `python -m tests.chaos.worker`.

Beside what tests/tiny_worker.py offers, TINY_GATE/hold-<point> stops every step at that point until the file is gone,
and TINY_GATE/entered-<point> says that one has come there:

    prepare  a side is prepared and saved, its plan goes on
    write    half of a PNG is in its unfinished file
    ack      the cell is recorded, its message is not acknowledged

A picture that is one magenta field kills the process when it comes to the device, as a fault in a driver would.
CHAOS_PASS_S is how long a forward pass takes.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import worker.app
from shared.jobs import Job
from shared.settings import Settings, load_settings
from shared.storage import FolderStorage
from tests.tiny_worker import TinyEngine
from worker.cells import LoadedEngine
from worker.heartbeat import Heartbeat
from worker.pipeline import Pipeline, SideOutcome

#: The points, in the order in which a job comes to them; a pass of the model `rmbg` is one too.
POINTS = ("prepare", "rmbg", "write", "ack")
_GATE = Path(os.environ.get("TINY_GATE", "/nonexistent"))


def pass_gate(point: str) -> None:
    if (_GATE / f"hold-{point}").exists():
        (_GATE / f"entered-{point}").touch()
        while (_GATE / f"hold-{point}").exists():
            time.sleep(0.01)


class GatedStorage(FolderStorage):
    def write_atomic(self, name: str, data: bytes | Iterable[bytes]) -> int:
        return super().write_atomic(name, _in_halves(data))


def _in_halves(data: bytes | Iterable[bytes]) -> Iterator[bytes]:
    whole = data if isinstance(data, bytes) else b"".join(data)
    yield whole[: len(whole) // 2]
    pass_gate("write")
    yield whole[len(whole) // 2 :]


class GatedPipeline(Pipeline):
    def _prepare_side(self, job: Job, side: str) -> SideOutcome:
        outcome = super()._prepare_side(job, side)
        pass_gate("prepare")
        return outcome

    def cell(self, job_id: str, side: str, model: str) -> dict[str, Any]:
        record = super().cell(job_id, side, model)
        pass_gate("ack")
        return record


class PoisonableEngine(TinyEngine):
    def masks(self, batch: Tensor) -> Tensor:
        for item in batch:
            red, green, blue = item.flatten(1)
            if red.min() > 2 and green.max() < -2 and blue.min() > 2:  # normalised: 255, 0, 255
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("CHAOS_PASS_S", "0")))
        return super().masks(batch)


def load_engines(settings: Settings, heartbeat: Heartbeat) -> Mapping[str, LoadedEngine]:
    engines = {name: PoisonableEngine(name, _GATE if _GATE.is_dir() else None) for name in settings.models}
    for name in engines:
        heartbeat.model(name, status="ready", device="cpu", dtype="float32", profile="tiny", licence="MIT")
    return engines


if __name__ == "__main__":
    vars(worker.app).update(FolderStorage=GatedStorage, Pipeline=GatedPipeline)
    sys.exit(worker.app.run_worker(load_settings(), load_engines))
