"""Measure checkpoints, and what they are compared with, on pairs of pictures and true alphas.

python -m training.evaluate                            # both starter weights on the test set, tests/data/designs
python -m training.evaluate --set heldout              # on the small set that the tests use
python -m training.evaluate --set validation --size 512 640 768
python -m training.evaluate --rivals --worst docs/starter-worst.png --json scores.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from training.data import Sample, load_assets, sample
from training.heldout import SMALL_SET, read_test_set
from training.measures import Scores, score
from training.packaged import PACKAGED
from training.pictures import Method, kinds_sheet, worst_sheet
from training.rivals import RIVALS
from training.split import VALIDATION
from worker.images import Picture, network_input
from worker.nets import CONFIGS
from worker.nets.fast import prepare_for_inference
from worker.nets.weights import load_checkpoint

ROOT = Path(__file__).parent.parent
STARTER = ROOT / "models" / "starter"
ROLES = ("rmbg", "birefnet")

#: One line of the table: measure, heading.
COLUMNS = (
    ("mae", "MAE"), ("iou", "IoU"), ("soft_iou", "soft IoU"), ("boundary", "bound. F"), ("fine", "F at 2px"),
    ("gradient", "gradient"), ("connectivity", "connect."), ("soft", "soft"),
)  # fmt: skip


def predict(model: nn.Module, image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Mask of an (H, W, 3) uint8 RGB picture, squashed as the service does it: (size, size) float32, 0..1."""
    rgb = np.require(image, requirements=["C", "W"])  # torch wants writable memory
    with torch.inference_mode():
        logits = model(network_input(Picture(rgb, None), size, torch.device("cpu")))
    return np.asarray(logits.sigmoid()[0, 0].numpy(), np.float32)


def stored_pairs(folder: Path = SMALL_SET) -> list[Sample]:
    """The pairs of a folder: NN_GROUND.jpg or .png beside NN_GROUND_alpha.png; their kind of art is not told."""
    pairs = []
    for path in sorted(folder.glob("*_alpha.png")):
        name = path.name.removesuffix("_alpha.png")
        picture = next(p for p in (folder / f"{name}.jpg", folder / f"{name}.png") if p.exists())
        image, alpha = np.asarray(Image.open(picture).convert("RGB")), np.asarray(Image.open(path))
        pairs.append(Sample(image, alpha, "any", name.partition("_")[2]))
    return pairs


def measured(method: Method, pairs: Iterable[Sample]) -> list[Scores]:
    """The scores of every pair, in their order."""
    return [score(method(pair.image), pair.alpha) for pair in pairs]


def by_kind(pairs: Iterable[Sample], scores: Iterable[Scores]) -> dict[str, dict[str, Scores]]:
    """Mean scores per kind of art ("art") and per kind of ground ("ground"), by name."""
    tables: dict[str, dict[str, list[Scores]]] = {"art": {}, "ground": {}}
    for pair, item in zip(pairs, scores, strict=True):
        tables["art"].setdefault(pair.kind, []).append(item)
        tables["ground"].setdefault(pair.ground, []).append(item)
    return {table: {name: Scores.mean(items) for name, items in sorted(rows.items())} for table, rows in tables.items()}


def evaluate(model: nn.Module, pairs: Iterable[Sample], size: int) -> Scores:
    """Mean scores of a network at one input size."""
    return Scores.mean(measured(lambda image: predict(model, image, size), pairs))


@cache
def validation_pairs(count: int, size: int) -> list[Sample]:
    """The first pictures of the validation split, drawn once; `size` is about the root of a picture's area, pixels."""
    assets = load_assets(VALIDATION)
    return [sample(assets, 7, index, size) for index in range(count)]


def chosen_pairs(name: str, count: int) -> list[Sample]:
    """The pairs of a set: "test" (tests/data/designs), "heldout" (the tests' small set) or "validation" (drawn)."""
    if name == "validation":
        return validation_pairs(count, 560)
    if name == "heldout":
        return stored_pairs()
    return [pair for _, pair in read_test_set()]


def line(label: str, scores: Scores) -> str:
    """One row of the table."""
    return f"{label[-27:]:<28}" + "".join(f"{getattr(scores, column):>10.4f}" for column, _ in COLUMNS)


def main() -> int:
    """Command line: tables, and JSON and a sheet of the worst pictures if asked for."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--set", choices=("test", "heldout", "validation"), default="test")
    parser.add_argument("--count", type=int, default=100, help="how many validation pictures")
    parser.add_argument("--size", type=int, nargs="*", help="sides of the input, pixels (default: the variant's)")
    parser.add_argument("--variant", choices=sorted(CONFIGS), default="starter")
    parser.add_argument("--weights", type=Path, nargs="*", help="checkpoints, none too (default: both starter weights)")
    parser.add_argument("--rivals", action="store_true", help="also measure the classical methods")
    parser.add_argument(
        "--packaged", action="store_true", help="also measure networks that packages ship (packaged.py)"
    )
    parser.add_argument("--worst", type=Path, help="draw the 24 worst pictures of the first checkpoint here")
    parser.add_argument("--kinds", type=Path, help="draw the first picture of each kind of art here")
    parser.add_argument("--threads", type=int, default=1, help="more than one only on an otherwise idle machine")
    parser.add_argument("--json", type=Path, help="write the scores here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    pairs = chosen_pairs(options.set, options.count)
    methods: dict[str, Method] = {}
    config = CONFIGS[options.variant]
    for path in options.weights if options.weights is not None else [STARTER / f"{role}.safetensors" for role in ROLES]:
        model = prepare_for_inference(load_checkpoint(path, config))  # as the service runs it
        for size in options.size or [config.input_size]:
            methods[f"{path.stem} {size} px"] = _network(model, size)
    if options.kinds:
        kinds_sheet(options.kinds, pairs, {label.split()[0]: method for label, method in methods.items()})
    methods.update(RIVALS if options.rivals else {})
    methods.update({name: make(options.threads) for name, make in PACKAGED.items()} if options.packaged else {})
    report: dict[str, Any] = {"set": options.set, "pictures": len(pairs), "methods": {}}
    print(f"{options.set}: {len(pairs)} pictures\n{'':<28}" + "".join(f"{title:>10}" for _, title in COLUMNS))
    for number, (label, method) in enumerate(methods.items()):
        scores = measured(method, pairs)
        tables = by_kind(pairs, scores)
        print(line(label, Scores.mean(scores)), flush=True)
        for rows in tables.values():
            for kind, mean in rows.items():
                print(line(f"  {kind}", mean))
        report["methods"][label] = {
            "mean": Scores.mean(scores)._asdict(),
            **{name: {kind: mean._asdict() for kind, mean in rows.items()} for name, rows in tables.items()},
        }
        if options.worst and number == 0:
            worst_sheet(options.worst, pairs, scores, method)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def _network(model: nn.Module, size: int) -> Method:
    return lambda image: predict(model, image, size)


if __name__ == "__main__":
    sys.exit(main())
