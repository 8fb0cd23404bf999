"""Train the starter weights on a CUDA card: a base, then both roles side by side on the same pictures.

    python -m training.card --minutes 8 --init models/starter/rmbg.safetensors --publish

Where training/train.py makes the most of a few processor cores, this makes the most of a card: every core draws
pictures (supply.py), the card never waits for them and sees each a few times, the whole network learns, batches are
large. The length is a budget of seconds. The same networks, losses, seeds and folders as train.py; a run that was cut
off goes on from the last finished part (base, then roles). recipe.py chains such runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import Assets, drawn_assets, load_assets
from training.evaluate import ROLES as ROLE_NAMES
from training.supply import AT_ONCE, Reservoir, Supply
from training.train import PEAK_LR, RUNS, USUAL, Phase, Plan, Run, grown, publish
from worker.nets import deform_conv


@dataclass(frozen=True)
class CardPhase(Phase):
    """A part of a run on a card; small pictures are made from larger ones, which the next part can go on with."""

    #: Side of the pictures as they are kept, pixels; at least `size`. They are drawn in several (`data.ZOOMS`).
    drawn: int


#: Few sizes: on an H100, the first step at a new one took 15 to 22 s, because cuDNN compiles its kernels.
BASE = (CardPhase(0.4, 512, 32, 512), CardPhase(1.0, 640, 24, 640))
ROLES = (CardPhase(1.0, 640, 24, 640),)
#: A run from good weights, base and roles: smaller batches, more steps.
FURTHER = (CardPhase(1.0, 640, 16, 640),)
#: Share of the whole time that the base has, and in a run from good weights: there the base gained 0.0055 of IoU, and
#: the roles after it lost 0.002 (models/starter/README.md, third run).
BASE_SHARE, FURTHER_BASE_SHARE = 0.6, 0.85
#: Far from the seeds of train.py.
SEED = 404
#: Pictures of one size that the card remembers, and that may lie ready for it.
KEPT, PLACES = 16_000, 16_000
LOG_EVERY_S = 5.0
#: Where and how often the averaged weights are stored, for a run that does not come to its end.
LATEST, STORE_EVERY_S = "latest.safetensors", 60.0
#: Steps at a new shape before its pass is recorded: libraries choose and load their kernels in these.
WARM_UP_PASSES = 3
#: How long before the end of a phase the supply turns to the next one's size.
LEAD_S = 15.0


def deform_conv2d_on_grid(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """`worker.nets.deform_conv.deform_conv2d` by PyTorch's own sampler, whose backward pass a card does at once.

    The same shapes and values: the sampler too takes corners outside the map for zeros.
    """
    batch, channels, height, width = x.shape
    taps = weight.shape[2] * weight.shape[3]
    kernel = weight.shape[3]
    device = x.device
    tap = torch.arange(taps, device=device)
    row = torch.arange(height, device=device).view(1, -1, 1) + (tap // kernel - kernel // 2).view(-1, 1, 1)
    column = torch.arange(width, device=device).view(1, 1, -1) + (tap % kernel - kernel // 2).view(-1, 1, 1)
    moved = offset.float().view(batch, taps, 2, height, width)
    y, x_at = row + moved[:, :, 0], column + moved[:, :, 1]
    grid = torch.stack((2 * x_at / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    sampled = F.grid_sample(x.float(), grid.view(batch, taps * height, width, 2), align_corners=True)
    sampled = sampled.view(batch, channels, taps, height * width) * mask.float().view(batch, 1, taps, -1)
    columns = sampled.reshape(batch, channels * taps, height * width).to(x.dtype)
    return (weight.reshape(weight.shape[0], -1).to(x.dtype) @ columns).view(batch, -1, height, width)


class Learner:
    """A run's steps on a device: on a card in a stream of its own, and the pass recorded once per shape and replayed.

    A pass is thousands of small calls, which take longer to ask for than to do.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        #: Of the pictures that the recording is for, and how many passes come before it.
        self._shape: torch.Size | None = None
        self._left = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        #: Where the recording reads, and where it leaves the parts of the loss.
        self._image = self._alpha = torch.empty(0)
        self._parts: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(run.device) if run.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def step(self, image: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """Find the gradients and follow them; `join` before the batch or the result is used elsewhere.

        Args:
            image: (B, 3, S, S) float32, normalised. alpha: (B, 1, S, S) float32, 0..1.
        Returns:
            The parts of the loss; on a card they hold until the next step.
        """
        if self._stream is None:
            parts = self.run.find_gradients(image, alpha)
            self.run.follow_gradients()
            return parts
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            parts = self._gradients(image, alpha)
            self.run.follow_gradients()
        return parts

    def join(self) -> None:
        """What the caller does next waits for the last step."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _gradients(self, image: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        if image.shape != self._shape:
            self._shape, self._graph, self._left = image.shape, None, WARM_UP_PASSES
        if self._left > 0:
            self._left -= 1
            return self.run.find_gradients(image, alpha)
        if self._graph is None:
            self._graph = self._recorded(image, alpha)
        self.run.prepare()
        self._image.copy_(image)
        self._alpha.copy_(alpha)
        self._graph.replay()
        return self._parts

    def _recorded(self, image: Tensor, alpha: Tensor) -> torch.cuda.CUDAGraph:
        self._image, self._alpha = image.clone(), alpha.clone()
        self.run.prepare()
        # A pass that finds no gradients makes them, and replays write them over; to any that are there it would add.
        self.run.optimiser.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._parts = self.run.back(self._image, self._alpha)
        return graph


def learn(
    runs: Sequence[Run], supply: Supply, phases: Sequence[CardPhase], seconds: float, stores: dict[int, Reservoir],
    kept: int = KEPT, clock: Callable[[], float] = time.perf_counter,
) -> None:  # fmt: skip
    """Train networks on the same batches until the time is used, and save them.

    Until then `LATEST` in a run's folder has its averaged weights of the last minute; `--init` takes it.

    Args:
        stores: the pictures that the device has, by size; the last phase's stay there for the next call.
    """
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.budget_s = seconds
    learners = [Learner(run) for run in runs]
    began, last_log, last_store = clock(), 0.0, 0.0
    with ExitStack() as files:
        curves = [files.enter_context((run.folder / "curve.jsonl").open("a")) for run in runs]
        for number, phase in enumerate(phases):
            coming = phases[min(number + 1, len(phases) - 1)].drawn
            end = phase.until * seconds
            while (used := clock() - began) < end:
                # The last pictures drawn in a phase are of the next one's size, so that it has some to begin with.
                needed = 2 * phase.batch - (stores[phase.drawn].count if phase.drawn in stores else 0)
                wanted = phase.drawn if needed > 0 or used < end - LEAD_S else coming
                supply.resize(wanted)
                if wanted not in stores:
                    stores[wanted] = Reservoir(kept, wanted, runs[0].device, SEED)
                for picture in islice(supply.taken(at_least=max(0, needed)), max(AT_ONCE, needed)):
                    stores[wanted].add(picture)
                image, alpha = stores[phase.drawn].batch(phase.batch, phase.size)
                logged = used - last_log >= LOG_EVERY_S
                for run in runs:
                    run.used_s = used
                    run.seen += phase.batch
                steps = [learner.step(image, alpha) for learner in learners]
                for learner in learners:
                    learner.join()
                if logged:
                    last_log = used
                    for run, curve, parts in zip(runs, curves, steps, strict=True):
                        run.log(curve, {"role": run.role, "size": phase.size, "drawn": supply.drawn}, parts)
                if used - last_store >= STORE_EVERY_S:
                    last_store = used
                    for run in runs:
                        run.store(run.folder / LATEST)
            if coming != phase.drawn:
                stores.pop(phase.drawn, None)
    for run in runs:
        run.used_s = seconds
        run.save()
        (run.folder / LATEST).unlink(missing_ok=True)


def train(
    assets: Assets, device: torch.device, minutes: float, init: Path | None, folder: Path, processes: int,
    base: Sequence[CardPhase] = BASE, roles: Sequence[CardPhase] = ROLES, kept: int = KEPT, places: int = PLACES,
    go: Path | None = None, peak_lr: float = PEAK_LR["base"], seed: int = SEED, further: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Train the base and both roles.

    Args:
        further: from good weights: more of what is hardest, and what batch norms have counted stays; the roles keep the
            early layers, too (`train.Plan`).
        peak_lr: the base's largest learning rate.
        seed: of the pictures.
        go: nothing but drawing happens before this file exists; it may hold the minutes in place of `minutes`.
    Returns:
        Checkpoints of the averaged weights by role.
    Raises:
        ValueError: the folder has a run that began with other weights, pictures or rates, or by another plan.
    """
    share = FURTHER_BASE_SHARE if further else BASE_SHARE
    sizes = [[[phase.size, phase.drawn] for phase in phases] for phases in (base, roles)]
    beginning = _beginning(folder, init, further=further, base_share=share, seed=seed, peak_lr=peak_lr, sizes=sizes)
    found = {role: folder / role / "ema.safetensors" for role in ROLE_NAMES}
    if all(path.exists() for path in found.values()):
        print(f"{folder} has a finished run; nothing is left to do", flush=True)
        return found
    largest = max(phase.drawn for phase in (*base, *roles))
    supply = Supply(assets, seed, base[0].drawn, largest, processes, places, further)
    plan = Plan(further=True) if further else USUAL
    stores: dict[int, Reservoir] = {}
    while go is not None and not go.exists():
        time.sleep(0.2)
    minutes = float((go.read_text().strip() if go else "") or minutes)
    plain, deform_conv.deform_conv2d = deform_conv.deform_conv2d, deform_conv2d_on_grid
    try:
        _store(folder / "beginning.json", beginning)
        finished = folder / "base" / "ema.safetensors"
        if not finished.exists():
            start = None if init is None else grown(init, folder / "base", SEED)
            run = Run("base", minutes, start, folder / "base", device, replace(plan, peak_lr=peak_lr))
            learn([run], supply, base, 60 * minutes * share, stores, kept)
            del run  # and the memory of its recording
        both = [Run(role, minutes, finished, folder / role, device, plan) for role in found]
        learn(both, supply, roles, 60 * minutes * (1 - share), stores, kept)
    finally:
        deform_conv.deform_conv2d = plain
        supply.close()
    return found


def _beginning(folder: Path, init: Path | None, **more: Any) -> dict[str, Any]:
    """What a run begins with; a folder whose runs began otherwise is refused: what is finished there would be taken.

    Raises:
        ValueError: they did, or nobody knows how.
    """
    digest = None if init is None else hashlib.sha256(init.read_bytes()).hexdigest()
    beginning = {"init_sha256": digest, **more}
    record = folder / "beginning.json"
    former = record.read_text() if record.exists() else ""
    try:
        finished = [name for name in ("base", *ROLE_NAMES) if (folder / name / "ema.safetensors").exists()]
        same = json.loads(former) == beginning if former else not finished
    except ValueError:
        same = False
    if not same:
        raise ValueError(f"{folder} has a run that began otherwise, {former!r}; choose another --runs")
    return beginning


def _store(record: Path, beginning: dict[str, Any]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_suffix(".part")
    part.write_text(json.dumps(beginning))
    part.rename(record)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    parser.add_argument(
        "--init", type=Path, help="checkpoint to start from (default: ImageNet weights for the backbone)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the pictures: another one draws others")
    parser.add_argument(
        "--further", action="store_true", help="from good weights: more of what is hardest, borders, small batches"
    )
    parser.add_argument(
        "--peak-lr", type=float, default=PEAK_LR["base"], help="of the base; less than usual keeps more of good weights"
    )
    parser.add_argument("--runs", type=Path, default=RUNS / "card", help="folder of the run")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="that draw")
    parser.add_argument("--go", type=Path, help="only draw until this file exists; it may hold the minutes")
    parser.add_argument("--publish", action="store_true", help="put the results into models/starter")
    parser.add_argument("--rehearse", action="store_true", help="tiny pictures of simple shapes on the CPU")
    options = parser.parse_args()
    if options.further and options.init is None:
        parser.error("--further begins with weights that are good already: name them by --init")
    if options.rehearse and options.publish:
        parser.error("--rehearse has nothing to publish")
    if options.seed < 0 or options.peak_lr <= 0:
        parser.error("--seed is 0 or more, --peak-lr above 0")
    cv2.setNumThreads(1)
    if options.rehearse:
        tiny = (CardPhase(1.0, 64, 2, 96),)
        train(
            drawn_assets(), torch.device("cpu"), options.minutes, options.init, options.runs, 1, tiny, tiny, 64, 64,
            peak_lr=options.peak_lr, seed=options.seed, further=options.further,
        )  # fmt: skip
        return 0
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the other way of asking opens the card, and a fork is to come
    if not torch.cuda.is_available():
        print("No CUDA card is here; python -m training.train trains on the CPU.", file=sys.stderr)
        return 2
    base, roles = (FURTHER, FURTHER) if options.further else (BASE, ROLES)
    found = train(
        load_assets("train"), torch.device("cuda"), options.minutes, options.init, options.runs, options.processes,
        base, roles, go=options.go, peak_lr=options.peak_lr, seed=options.seed, further=options.further,
    )  # fmt: skip
    if options.publish:
        for role, checkpoint in found.items():
            publish(checkpoint, role)
    return 0


if __name__ == "__main__":
    sys.exit(main())
