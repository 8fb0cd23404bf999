"""Measure checkpoints on pairs of pictures and true alphas.

python -m training.evaluate                      # both starter weights on tests/data/heldout
python -m training.evaluate --generated 200      # on 200 fresh pictures of the held-out assets
python -m training.evaluate --json scores.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from training.data import Sample, load_assets, normalised, sample
from worker.nets import CONFIGS, BiRefNet
from worker.nets.weights import load_checkpoint

ROOT = Path(__file__).parent.parent
STARTER = ROOT / "models" / "starter"
HELD_OUT_SET = ROOT / "tests" / "data" / "heldout"
ROLES = ("rmbg", "birefnet")


class Scores(NamedTuple):
    """Quality of one mask, or the mean over many."""

    #: Mean absolute error of the alpha, 0..1.
    mae: float
    #: Intersection over union of alpha > 0.5, 0..1.
    iou: float
    #: Share of pixels whose alpha is neither clearly 0 nor clearly 1 (0.05..0.95): how soft the mask is.
    soft: float

    @staticmethod
    def mean(scores: Sequence[Scores]) -> Scores:
        """The mean of each measure."""
        return Scores(*(round(float(value), 5) for value in np.mean(np.array(scores), axis=0)))


def score(mask: NDArray[np.float32], alpha: NDArray[np.uint8]) -> Scores:
    """Compare a mask with the true alpha.

    Args:
        mask: (h, w) float32, 0..1, of any size; it is resized to the alpha's.
        alpha: (H, W) uint8.
    """
    found = cv2.resize(mask, (alpha.shape[1], alpha.shape[0]), interpolation=cv2.INTER_LINEAR)
    truth = alpha.astype(np.float32) / 255
    inside, true_inside = found > 0.5, truth > 0.5
    union = int((inside | true_inside).sum())
    iou = float((inside & true_inside).sum()) / union if union else 1.0
    soft = float(((found > 0.05) & (found < 0.95)).mean())
    return Scores(float(np.abs(found - truth).mean()), iou, soft)


def predict(model: BiRefNet, image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Mask of an (H, W, 3) uint8 RGB picture squashed to the network's square: (size, size) float32, 0..1."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(normalised(image, size))[None])
    return np.asarray(logits.sigmoid()[0, 0].numpy(), np.float32)


def stored_pairs(folder: Path = HELD_OUT_SET) -> list[Sample]:
    """The pairs of a folder: NAME.jpg or NAME.png beside NAME_alpha.png."""
    pairs = []
    for path in sorted(folder.glob("*_alpha.png")):
        name = path.name.removesuffix("_alpha.png")
        picture = next(p for p in (folder / f"{name}.jpg", folder / f"{name}.png") if p.exists())
        pairs.append(Sample(np.asarray(Image.open(picture).convert("RGB")), np.asarray(Image.open(path)), "any", name))
    return pairs


def evaluate(model: BiRefNet, pairs: Iterable[Sample], size: int) -> tuple[Scores, dict[str, Scores]]:
    """Mean scores, and the mean per kind of background."""
    kinds: dict[str, list[Scores]] = {}
    for pair in pairs:
        kinds.setdefault(pair.ground, []).append(score(predict(model, pair.image, size), pair.alpha))
    everything = [item for items in kinds.values() for item in items]
    return Scores.mean(everything), {kind: Scores.mean(items) for kind, items in sorted(kinds.items())}


def main() -> int:
    """Command line: a table, and JSON if asked for."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--generated", type=int, default=0, help="use N fresh held-out pictures instead of the set")
    parser.add_argument("--size", type=int, default=CONFIGS["starter"].input_size, help="side of the input, pixels")
    parser.add_argument("--weights", type=Path, nargs="*", help="checkpoints (default: both starter weights)")
    parser.add_argument("--threads", type=int, default=1, help="more than one only on an otherwise idle machine")
    parser.add_argument("--json", type=Path, help="write the scores here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.generated:
        assets = load_assets("validation")
        pairs = [sample(assets, 7, index, 480) for index in range(options.generated)]
    else:
        pairs = stored_pairs()
    weights = options.weights or [STARTER / f"{role}.safetensors" for role in ROLES]
    report = {}
    print(f"{len(pairs)} pictures at {options.size} px\n{'weights':<28}{'MAE':>9}{'IoU':>9}{'soft':>9}")
    for path in weights:
        total, kinds = evaluate(load_checkpoint(path, CONFIGS["starter"]), pairs, options.size)
        name = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
        rows = {name: total, **({f"  {kind}": value for kind, value in kinds.items()} if options.generated else {})}
        for label, scores in rows.items():
            print(f"{label[-27:]:<28}{scores.mae:>9.4f}{scores.iou:>9.4f}{scores.soft:>9.4f}")
        report[name] = {"mean": total._asdict(), "kinds": {kind: value._asdict() for kind, value in kinds.items()}}
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, "pictures": len(pairs), "weights": report}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
