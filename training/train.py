"""Train the starter weights: a base first, then one short fine-tuning per role.

    python -m training.train --publish                      # all three, then into models/starter
    python -m training.train --role base --minutes 60
    python -m training.train --role rmbg --minutes 8 --publish
    python -m training.train --role birefnet --minutes 8 --publish

The picture size grows during a run (`SCHEDULES`): small pictures give many steps per minute while the network learns
what a design is, large ones teach the edges at the end. The backbone begins with ImageNet weights (`pretrained.py`).

Several processes (`--processes`) each draw their own pictures and share their gradients, one thread each: on two cores
that is faster than two threads, and a busy machine slows it without making it spin. A run stopped half-way goes on
where it was. Pictures and starting weights are seeded; the length is a budget of processor time, so the number of steps
depends on the machine, but not on what else ran on it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from training.assets import CACHE
from training.data import Assets, load_assets, training_pairs
from training.evaluate import STARTER, evaluate, validation_pairs
from training.losses import RECIPES, training_loss
from training.measures import Scores
from training.pretrained import fetch, load_pretrained, published_state
from worker.nets import CONFIGS, BiRefNet
from worker.nets.efficientnet import ConvNorm, EfficientNet
from worker.nets.weights import CheckpointError, check_keys, load_checkpoint, save_checkpoint

RUNS = Path(__file__).parent / "runs"
CONFIG = "starter"
#: How the names of the refining stage's weights begin.
REFINE = "decoder.refine."


@dataclass(frozen=True)
class Plan:
    """What a run does beside its schedule."""

    #: Go on from good weights: more of what is hardest, in several sizes, some faint, some with borders
    #: (`data.training_pairs`), by another schedule.
    #: What batch norms have counted stays, since a few pictures at a time would only blur it.
    further: bool = False
    #: Only the refining stage learns.
    refine_only: bool = False
    #: Of the pictures; None for the role's. Weights that learn on should see others than they have seen.
    seed: int | None = None
    #: Largest learning rate; None for the role's. A smaller one changes good weights less.
    peak_lr: float | None = None


USUAL = Plan()


def polishes(role: str, plan: Plan) -> bool:
    """Whether a run is the last for its weights: a role that goes further. A base that does learns as any other."""
    return plan.further and role != "base"


@dataclass(frozen=True)
class Phase:
    """A part of a run with one picture size."""

    #: Share of the run's time at which this phase ends, 0..1.
    until: float
    size: int
    #: Pictures per step and process.
    batch: int


SCHEDULES = {
    "base": (Phase(0.3, 192, 6), Phase(0.75, 256, 5), Phase(1.0, 384, 3)),
    "rmbg": (Phase(0.5, 512, 3), Phase(1.0, 640, 2)),
    "birefnet": (Phase(0.5, 512, 3), Phase(1.0, 640, 2)),
}
#: A run with `Plan.further`, whatever its role.
FURTHER = (Phase(0.5, 576, 3), Phase(1.0, 640, 3))
PEAK_LR = {"base": 1.5e-3, "rmbg": 2e-4, "birefnet": 2e-4}
#: The backbone knows something already: its learning rate over the decoder's.
BACKBONE_SHARE = 0.25
#: And the refining stage's where it learns alone: it is small, and begins from nothing.
REFINE_SHARE = 5.0
#: Seeds far apart, so that roles and the base never see the same pictures.
SEEDS = {"base": 101, "rmbg": 202, "birefnet": 303}
#: Processor minutes (per process) of a run from nothing; the weights in git have had more (models/starter/README.md).
MINUTES = {"base": 18.0, "rmbg": 4.0, "birefnet": 4.0}
WARM_UP_STEPS = 100
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
        state = model.state_dict()
        floats = [key for key, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[key] for key in floats], [state[key] for key in floats], 1 - keep)
        for key in state.keys() - floats:
            self.state[key].copy_(state[key])


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off: with a few dozen channels, losing half of them costs more than it teaches."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def depthwise_in_float32(model: nn.Module) -> None:
    """Take depthwise convolutions out of mixed precision: their bfloat16 backward pass is the slow one on a CPU."""
    for module in model.modules():
        if isinstance(module, ConvNorm) and module.conv.groups > 1:
            module.forward = _in_float32(module.forward)  # type: ignore[method-assign]


def _in_float32(forward: Any) -> Any:
    def call(x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float())

    return call


def _all_but_refine(model: BiRefNet) -> list[nn.Module]:
    others = [module for name, module in model.decoder.named_children() if name != "refine"]
    return [model.bb, model.squeeze_module, *others]


class Run:
    """One training run: everything that has to survive a restart, and the loop."""

    def __init__(
        self, role: str, minutes: float, init: Path | None, folder: Path, device: torch.device | None = None,
        plan: Plan = USUAL,
    ) -> None:  # fmt: skip
        """
        Args:
            minutes: length, of processor time. init: checkpoint to start from; None for a pretrained backbone alone.
        """
        self.seed = SEEDS[role] if plan.seed is None else plan.seed
        torch.manual_seed(self.seed)
        self.peak_lr = PEAK_LR[role] if plan.peak_lr is None else plan.peak_lr
        self.role, self.budget_s, self.folder = role, 60 * minutes, folder
        self.plan = replace(plan, seed=self.seed, peak_lr=self.peak_lr)
        self.device = device or torch.device("cpu")
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.model = BiRefNet(CONFIGS[CONFIG])
        backbone = self.model.bb
        assert isinstance(backbone, EfficientNet)
        if init is not None:
            self.model.load_state_dict(load_checkpoint(init, CONFIGS[CONFIG]).state_dict())
        else:
            load_pretrained(backbone, published_state(fetch(CACHE)))
        without_dropout(self.model)
        # A processor that has no bfloat16 instructions takes 60 times as long for a product of such numbers.
        self.mixed = self.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
        if self.device.type == "cpu":
            depthwise_in_float32(self.model)
        self.model = self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # What edges and textures look like, ImageNet has taught well enough: no gradient is computed at the two largest
        # sizes of the backbone, which is a third of a step's time on a CPU. Roles that go further do so on a card, too
        # (74 ms a step in place of 87).
        self.frozen = backbone.early if self.device.type == "cpu" or polishes(role, plan) else []
        if self.plan.refine_only:
            self.frozen = _all_but_refine(self.model)
        self.still = _all_but_refine(self.model) if self.plan.further else []
        for module in self.frozen:
            module.requires_grad_(False)
        self.learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self._groups(), lr=self.peak_lr, fused=True)
        self.average = Average(self.model)
        self.step, self.seen, self.used_s = 0, 0, 0.0
        self.state_path = folder / "state.pt"
        if self.state_path.exists():
            self._restore()

    def _groups(self) -> list[dict[str, Any]]:
        groups = []
        shares = {name: self._share_of(name) for name, p in self.model.named_parameters() if p.requires_grad}
        for share in sorted(set(shares.values())):
            named = [(name, p) for name, p in self.model.named_parameters() if shares.get(name) == share]
            for many_dimensions in (True, False):
                chosen = [p for _, p in named if (p.ndim > 1) == many_dimensions]
                groups.append({"params": chosen, "weight_decay": 0.02 if many_dimensions else 0.0, "share": share})
        return groups

    def _share_of(self, name: str) -> float:
        """A weight's learning rate over the role's."""
        if name.startswith("bb.") and not name.startswith("bb.cue"):
            return BACKBONE_SHARE
        return REFINE_SHARE if self.plan.refine_only and name.startswith(REFINE) else 1.0

    def _restore(self) -> None:
        state: dict[str, Any] = torch.load(self.state_path, map_location=self.device, weights_only=True)
        # A run of before these could be named has its role's.
        usual = {"seed": SEEDS[self.role], "peak_lr": PEAK_LR[self.role]}
        if {**usual, **state["plan"]} != asdict(self.plan):
            raise ValueError(
                f"{self.folder} has a run with another plan, {state['plan']}; give this one a folder of its own"
            )
        if len(state["optimiser"]["param_groups"]) != len(self.optimiser.param_groups):
            raise ValueError(f"{self.folder} has a run whose weights learned in other groups; begin anew elsewhere")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.state, self.average.steps = state["average"], state["step"]
        self.step, self.seen, self.used_s = state["step"], state["seen"], state["used_s"]
        if self.rank == 0:
            print(f"going on from step {self.step}, {self.used_s / 60:.1f} min used", flush=True)

    def save(self) -> None:
        """Write the state to go on from, and the averaged weights as a checkpoint; the first process only."""
        if self.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average.state,
            "step": self.step, "seen": self.seen, "used_s": self.used_s, "plan": asdict(self.plan),
        }  # fmt: skip
        part = self.state_path.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.state_path)
        self.store(self.folder / "ema.safetensors")

    def store(self, path: Path) -> None:
        """Write the averaged weights as a checkpoint, which says where the run stands."""
        metadata = {"role": self.role, "step": str(self.step), "pictures": str(self.seen)}
        save_checkpoint(self.averaged(), path, dtype=torch.float16, metadata=metadata)

    def averaged(self) -> BiRefNet:
        """A network in evaluation mode with the averaged weights."""
        model = BiRefNet(CONFIGS[CONFIG])
        model.load_state_dict(self.average.state)  # copies, so it is on the CPU wherever the average is
        return model.eval()

    def train(self, assets: Assets, log_every_s: float = 20, check_every_s: float = 150) -> None:
        """Run until the time budget is used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last_log = last_check = self.used_s
        with (self.folder / "curve.jsonl").open("a") as curve:
            for phase in FURTHER if self.plan.further else SCHEDULES[self.role]:
                if self.used_s >= phase.until * self.budget_s:
                    continue
                supply = self._batches(assets, phase)
                while self.used_s < phase.until * self.budget_s:
                    began = time.process_time()
                    parts = self._one_step(*next(supply), began)
                    self.seen += phase.batch * self.ranks
                    if self.rank:
                        continue
                    if self.used_s - last_log >= log_every_s:
                        last_log = self.used_s
                        self.log(curve, {"size": phase.size}, parts)
                    if self.used_s - last_check >= check_every_s:
                        last_check = self.used_s
                        self.save()
                        self.log(curve, {"check": check(self.averaged())._asdict()})
        self.save()

    def _batches(self, assets: Assets, phase: Phase) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of this process, beginning at the first picture that no process has drawn.

        (B, 3, S, S) float32 normalised pictures and (B, 1, S, S) float32 alphas, 0..1.
        """
        pairs = training_pairs(assets, self.seed, phase.size, self.seen + self.rank, self.ranks, self.plan.further)
        while True:
            images, alphas = zip(*islice(pairs, phase.batch), strict=True)
            yield torch.stack(images), torch.stack(alphas)

    def _one_step(self, image: Tensor, alpha: Tensor, began: float) -> dict[str, Tensor]:
        parts = self.find_gradients(image, alpha)
        self.used_s += self._share_gradients(began)
        self.follow_gradients()
        return parts

    def find_gradients(self, image: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """One pass forward and back.

        Args:
            image: (B, 3, S, S) float32, normalised. alpha: (B, 1, S, S) float32, 0..1. Both on the run's device.
        Returns:
            The parts of the loss, detached.
        """
        self.prepare()
        self.optimiser.zero_grad(set_to_none=True)
        return self.back(image, alpha)

    def prepare(self) -> None:
        """What a step needs before its pass: the modules' modes and the learning rate."""
        self.model.train()
        for module in (*self.frozen, *self.still):
            module.eval()
        progress = self.used_s / self.budget_s
        for group in self.optimiser.param_groups:
            group["lr"] = group["share"] * learning_rate(self.step, progress, self.peak_lr)

    def back(self, image: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """The pass of `find_gradients` alone: nothing but operators on the run's device. Gradients are added up."""
        image = image.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            outputs = self.model.forward_with_aux(image)
        outputs.masks = [mask.float() for mask in outputs.masks]
        outputs.gradients = [gradient.float() for gradient in outputs.gradients]
        loss, parts = training_loss(outputs, image, alpha, RECIPES[self.role])
        loss.backward()  # type: ignore[no-untyped-call]
        return parts

    def follow_gradients(self) -> None:
        """One step of the optimiser, none where a gradient is not finite; the average follows."""
        norm = nn.utils.clip_grad_norm_(self.learned, 1.0)
        # As gradient scalers tell it: asking for the number would make the processor wait for a card, each step.
        self.optimiser.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimiser.step()
        self.step += 1
        self.average.update(self.model)

    def _share_gradients(self, began: float) -> float:
        """Put the mean gradient of all processes in place of this one's.

        Args:
            began: processor time at which this process began the step, seconds.
        Returns:
            The mean processor time that the step took, seconds, the same in all processes: they decide by it.
        """
        for p in self.learned:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self.learned if p.grad is not None]
        flat = torch.cat([*(g.reshape(-1) for g in gradients), torch.tensor([time.process_time() - began])])
        if self.ranks > 1:
            dist.all_reduce(flat)
            flat /= self.ranks
        start = 0
        for gradient in gradients:
            # Copied in place: the fused optimiser reads raw memory, so a gradient must keep its weight's channels-last
            # order. Views of the flat tensor would be taken for it, and every 3x3 convolution would learn noise.
            gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
            start += gradient.numel()
        return float(flat[-1])

    def log(self, curve: Any, values: dict[str, Any], parts: dict[str, Tensor] | None = None) -> None:
        """Add a line to the curve, and print it: where the run stands, values, and the parts of a loss."""
        losses = {name: round(float(value), 5) for name, value in (parts or {}).items()}
        line = {"step": self.step, "seen": self.seen, "minutes": round(self.used_s / 60, 2), **values, **losses}
        curve.write(json.dumps(line) + "\n")
        curve.flush()
        share = self.used_s / self.budget_s
        print(f"[{share:5.1%}] {time.strftime('%H:%M:%S')} {json.dumps(line)}", flush=True)


def check(model: BiRefNet, count: int = 24, size: int = 384) -> Scores:
    """Scores on a few pictures of the validation split; a progress meter, not the measure that counts."""
    return evaluate(model, validation_pairs(count, size), size)


def grown(init: Path, folder: Path, seed: int) -> Path:
    """A checkpoint of today's network from one of less width, or without the refining stage: the same function.

    What a layer has gained in outputs begins small and at random, in inputs at zero; a new refining stage adds nothing.

    Returns:
        The new checkpoint's path, in the folder.
    Raises:
        CheckpointError: it is of another network.
    """
    torch.manual_seed(seed)
    model = BiRefNet(CONFIGS[CONFIG])
    state, found = model.state_dict(), load_file(init)
    shapes = {key: value.shape for key, value in state.items()}
    has_refine = any(key.startswith(REFINE) for key in found)
    # Widths may differ, names and numbers of dimensions may not.
    wanted = {key: shape for key, shape in shapes.items() if has_refine or not key.startswith(REFINE)}
    problems = check_keys(wanted, {key: _at_most(tuple(value.shape), shapes.get(key)) for key, value in found.items()})
    if problems:
        raise CheckpointError(f"{init} is of another network:\n  " + "\n  ".join(problems))
    for key, value in state.items():
        if key not in found:
            continue
        old = found[key]
        if value.shape != old.shape and value.ndim > 1:
            value.mul_(0.3)
            value[: old.shape[0], old.shape[1] :] = 0
        value[tuple(slice(0, side) for side in old.shape)] = old.to(value.dtype)
    if not has_refine:
        for key in (f"{REFINE}conv_out.weight", f"{REFINE}conv_out.bias"):
            state[key].zero_()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "init.safetensors"
    save_checkpoint(model, path, dtype=torch.float32)
    return path


def _at_most(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The wanted shape for one that fits into it, otherwise the shape itself."""
    if wanted is None or len(shape) != len(wanted):
        return shape
    return wanted if all(a <= b for a, b in zip(shape, wanted, strict=True)) else shape


def train_role(role: str, minutes: float, init: Path | None, folder: Path, processes: int, plan: Plan = USUAL) -> Path:
    """Train one role and give the checkpoint of its averaged weights."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    arguments = (processes, meeting, role, minutes, init, folder, plan)
    spawn(_train_process, arguments, nprocs=processes)  # type: ignore[no-untyped-call]
    return folder / "ema.safetensors"


def _train_process(
    rank: int, processes: int, meeting: Path, role: str, minutes: float, init: Path | None, folder: Path,
    plan: Plan,
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # numbers below 1e-38 are a hundred times slower and mean nothing here
    cv2.setNumThreads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting.resolve()}", rank=rank, world_size=processes)
    run = Run(role, minutes, init, folder, plan=plan)
    run.train(load_assets("train"))
    if rank == 0:
        print(f"{role}: {run.step} steps, {run.seen} pictures, {run.used_s / 60:.1f} min", flush=True)
    dist.destroy_process_group()


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
    parser.add_argument("--init", type=Path, help="checkpoint to start from, of less width too (a role's: the base)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs; an unfinished one goes on")
    parser.add_argument("--processes", type=int, default=2, help="one thread each (default: 2)")
    parser.add_argument(
        "--further", action="store_true", help="from good weights: more of what is hardest, by a schedule of its own"
    )
    parser.add_argument("--refine", action="store_true", help="only the refining stage learns")
    parser.add_argument("--peak-lr", type=float, help=f"largest learning rate (default: {PEAK_LR})")
    parser.add_argument("--seed", type=int, help="of the pictures (default: the role's, always the same ones)")
    parser.add_argument("--publish", action="store_true", help="put the results into models/starter")
    options = parser.parse_args()
    if (options.further or options.refine) and (options.init is None or options.role == "all"):
        parser.error("--further and --refine begin with weights that are good already: name a --role and its --init")
    if options.seed is not None and (options.seed < 0 or options.role == "all"):
        parser.error("--seed is 0 or more and for one --role: runs with the same seed see the same pictures")
    if options.peak_lr is not None and (options.peak_lr <= 0 or options.role == "all"):
        parser.error("--peak-lr is above 0 and for one --role: a base learns faster than the roles after it")
    for role in MINUTES if options.role == "all" else (options.role,):
        init = options.init or (None if role == "base" else options.runs / "base" / "ema.safetensors")
        minutes = options.minutes or MINUTES[role]
        if init is not None:
            init = grown(init, options.runs / role, SEEDS[role])
        plan = Plan(options.further, options.refine, options.seed, options.peak_lr)
        checkpoint = train_role(role, minutes, init, options.runs / role, options.processes, plan)
        if options.publish and role != "base":
            publish(checkpoint, role)
    return 0


if __name__ == "__main__":
    sys.exit(main())
