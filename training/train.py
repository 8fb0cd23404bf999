"""Train the starter weights: a base first, then one short fine-tuning per role.

    python -m training.train --publish                      # all three, then into models/starter
    python -m training.train --role base --minutes 63
    python -m training.train --role rmbg --minutes 8 --publish
    python -m training.train --role birefnet --minutes 8 --publish

The picture size grows during a run (`SCHEDULES`): small pictures give many steps per minute while the network learns
what a design is, large ones teach the edges at the end. A run stopped half-way goes on where it was. Pictures and
starting weights are seeded; the length is a time budget, so the number of steps depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.data import Assets, Pairs, load_assets, normalised, sample
from training.evaluate import STARTER, Scores, score
from training.losses import RECIPES, training_loss
from worker.nets import CONFIGS, BiRefNet
from worker.nets.weights import load_checkpoint, save_checkpoint

RUNS = Path(__file__).parent / "runs"
CONFIG = "starter"


@dataclass(frozen=True)
class Phase:
    """A part of a run with one picture size."""

    #: Share of the run's time at which this phase ends, 0..1.
    until: float
    size: int
    batch: int


SCHEDULES = {
    "base": (Phase(0.25, 192, 8), Phase(0.84, 256, 8), Phase(1.0, 384, 4)),
    "rmbg": (Phase(0.6, 384, 4), Phase(1.0, 512, 4)),
    "birefnet": (Phase(0.6, 384, 4), Phase(1.0, 512, 4)),
}
PEAK_LR = {"base": 1.2e-3, "rmbg": 2e-4, "birefnet": 2e-4}
#: Seeds far apart, so that roles and the base never see the same pictures.
SEEDS = {"base": 101, "rmbg": 202, "birefnet": 303}
#: Minutes of each run behind the weights in git, on two CPU cores shared with other work.
MINUTES = {"base": 63.0, "rmbg": 8.0, "birefnet": 8.0}
WARM_UP_STEPS = 60
#: Share of the averaged weights kept per step; 0.995 averages over about 200 steps.
EMA_KEEP = 0.995


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Linear warm-up by steps, then half a cosine by the share of time used, down to 2 % of the peak."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class Average:
    """Exponential moving average of a network's weights and running statistics."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self.steps = 0

    def update(self, model: nn.Module) -> None:
        """Mix in the network's present state; the first steps count more, so that the start is forgotten."""
        self.steps += 1
        keep = min(EMA_KEEP, (1 + self.steps) / (10 + self.steps))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value.detach(), 1 - keep)
            else:
                self.state[key].copy_(value)


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off: with a few dozen channels, losing half of them costs more than it teaches."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _start_worker(_: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def batches(assets: Assets, seed: int, phase: Phase, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches from one worker process, beginning at sample `start`."""
    loader = DataLoader(
        Pairs(assets, seed, phase.size, start),
        batch_size=phase.batch,
        num_workers=1,
        prefetch_factor=6,
        worker_init_fn=_start_worker,
    )
    return iter(loader)


class Run:
    """One training run: everything that has to survive a restart, and the loop."""

    def __init__(self, role: str, minutes: float, init: Path | None, folder: Path) -> None:
        torch.manual_seed(SEEDS[role])
        self.role, self.budget_s, self.folder = role, 60 * minutes, folder
        self.model = BiRefNet(CONFIGS[CONFIG])
        if init is not None:
            self.model.load_state_dict(load_checkpoint(init, CONFIGS[CONFIG]).state_dict())
        without_dropout(self.model)
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.03}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=PEAK_LR[role], fused=True)
        self.average = Average(self.model)
        self.step, self.seen, self.used_s = 0, 0, 0.0
        self.state_path = folder / "state.pt"
        if self.state_path.exists():
            self._restore()

    def _restore(self) -> None:
        state: dict[str, Any] = torch.load(self.state_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.state, self.average.steps = state["average"], state["step"]
        self.step, self.seen, self.used_s = state["step"], state["seen"], state["used_s"]
        print(f"going on from step {self.step}, {self.used_s / 60:.1f} min used", flush=True)

    def save(self) -> None:
        """Write the state to go on from, and the averaged weights as a checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average.state,
            "step": self.step, "seen": self.seen, "used_s": self.used_s,
        }  # fmt: skip
        part = self.state_path.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.state_path)
        metadata = {"role": self.role, "config": CONFIG, "step": str(self.step), "pictures": str(self.seen)}
        save_checkpoint(self.averaged(), self.folder / "ema.safetensors", dtype=torch.float16, metadata=metadata)

    def averaged(self) -> BiRefNet:
        """A network in evaluation mode with the averaged weights."""
        model = BiRefNet(CONFIGS[CONFIG])
        model.load_state_dict(self.average.state)
        return model.eval()

    def train(self, assets: Assets, log_every_s: float = 20, check_every_s: float = 240) -> None:
        """Run until the time budget is used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last_log = last_check = self.used_s
        with (self.folder / "curve.jsonl").open("a") as curve:
            for phase in SCHEDULES[self.role]:
                if self.used_s >= phase.until * self.budget_s:
                    continue
                supply = batches(assets, SEEDS[self.role], phase, self.seen)
                while self.used_s < phase.until * self.budget_s:
                    began = time.monotonic()
                    parts = self._one_step(*next(supply))
                    self.seen += phase.batch
                    self.used_s += time.monotonic() - began
                    if self.used_s - last_log >= log_every_s:
                        last_log = self.used_s
                        self._log(curve, {"size": phase.size, **parts})
                    if self.used_s - last_check >= check_every_s:
                        last_check = self.used_s
                        self.save()
                        self._log(curve, {"check": check(self.averaged(), assets)._asdict()})
        self.save()

    def _one_step(self, image: Tensor, alpha: Tensor) -> dict[str, float]:
        self.model.train()
        progress = self.used_s / self.budget_s
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, progress, PEAK_LR[self.role])
        image = image.to(memory_format=torch.channels_last)
        loss, parts = training_loss(self.model.forward_with_aux(image), image, alpha, RECIPES[self.role])
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.step += 1
        self.average.update(self.model)
        return parts

    def _log(self, curve: Any, values: dict[str, Any]) -> None:
        line = {"step": self.step, "seen": self.seen, "minutes": round(self.used_s / 60, 2), **values}
        curve.write(json.dumps(line) + "\n")
        curve.flush()
        share = self.used_s / self.budget_s
        print(f"[{share:5.1%}] {json.dumps(line)}", flush=True)


def check(model: BiRefNet, assets: Assets, count: int = 24, size: int = 384) -> Scores:
    """Scores on a few fresh pictures of the training split; a progress meter, not the measure that counts."""
    pairs = [sample(assets, 999, index, size) for index in range(count)]
    found = []
    with torch.inference_mode():
        for pair in pairs:
            logits = model(torch.from_numpy(normalised(pair.image, size))[None])
            found.append(score(logits.sigmoid()[0, 0].numpy(), pair.alpha))
    return Scores.mean(found)


def train_role(role: str, minutes: float, init: Path | None, folder: Path) -> Path:
    """Train one role and give the checkpoint of its averaged weights."""
    run = Run(role, minutes, init, folder)
    run.train(load_assets())
    print(f"{role}: {run.step} steps, {run.seen} pictures, {run.used_s / 60:.1f} min", flush=True)
    return folder / "ema.safetensors"


def publish(checkpoint: Path, role: str) -> None:
    """Put a checkpoint in its place in models/starter: copied beside it, then renamed."""
    target = STARTER / f"{role}.safetensors"
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(checkpoint, part)
    part.rename(target)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.split("\n")[0])
    parser.add_argument("--role", choices=(*MINUTES, "all"), default="all", help="all: the three runs one by one")
    parser.add_argument("--minutes", type=float, help=f"time budget of a run (default: {MINUTES})")
    parser.add_argument("--init", type=Path, help="checkpoint to start from (default for a role: the base's)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs; an unfinished one goes on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--publish", action="store_true", help="put the results into models/starter")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # numbers below 1e-38 are a hundred times slower and mean nothing here
    cv2.setNumThreads(1)
    for role in MINUTES if options.role == "all" else (options.role,):
        init = options.init or (None if role == "base" else options.runs / "base" / "ema.safetensors")
        checkpoint = train_role(role, options.minutes or MINUTES[role], init, options.runs / role)
        if options.publish and role != "base":
            publish(checkpoint, role)
    return 0


if __name__ == "__main__":
    sys.exit(main())
