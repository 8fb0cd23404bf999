"""What the second pass of `detail: high` gains: `python -m benchmarks.detail`.

Held-out designs on plain grounds (tests/data/heldout) stand in a larger picture of the same ground; each starter model
cuts them out with one pass and with two. By the share of the picture that the art's box fills: alpha error over the
art's own alpha, IoU, and how often IoU fell or rose by more than 0.03.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from worker.images import Picture, mask_at_size, network_input
from worker.images.detail import art_box, full_mask
from worker.nets import CONFIGS, BiRefNet, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
HELDOUT = ROOT / "tests" / "data" / "heldout"


#: Grounds that go on beyond the border of the picture when its canvas is enlarged in the border's colour.
PLAIN = ("flat", "paper", "gradient")
SHARES = (0, 0.1, 0.2, 0.35, 0.7, 1)


def pairs(limit: int, *, busy: bool) -> list[tuple[Any, Any]]:
    """(rgb, alpha 0-255) of held-out designs, uint8, on plain grounds or on all others."""
    found = []
    for alpha_path in sorted(HELDOUT.glob("*_alpha.png")):
        stem = alpha_path.name.removesuffix("_alpha.png")
        if (stem.partition("_")[2] in PLAIN) != busy:
            source = next(path for path in HELDOUT.glob(f"{stem}.*"))
            found.append((np.array(Image.open(source).convert("RGB")), np.array(Image.open(alpha_path).convert("L"))))
    return found[:limit]


def small_in_picture(rgb: Any, alpha: Any, factor: float) -> tuple[Picture, Any]:
    """The design in the middle of a picture `factor` times its side, in the colour of its corner; its true alpha."""
    height, width = alpha.shape
    tall, wide = round(height * factor), round(width * factor)
    canvas = np.empty((tall, wide, 3), np.uint8)
    canvas[:] = np.median(rgb[:8, :8].reshape(-1, 3), axis=0)
    truth = np.zeros((tall, wide), np.uint8)
    top, left = (tall - height) // 2, (wide - width) // 2
    canvas[top : top + height, left : left + width] = rgb
    truth[top : top + height, left : left + width] = alpha
    return Picture(canvas, None), truth


def scores(found: Any, truth: Any) -> tuple[float, float]:
    """Alpha error over the art's alpha, and IoU at 0.5."""
    a, b = found > 0.5, truth > 127
    return float(np.abs(found - truth / 255).sum() / (truth / 255).sum()), float((a & b).sum() / max(1, (a | b).sum()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--busy", action="store_true", help="designs on fabric, wood, photographs; set into a frame")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(os.cpu_count() or 1)
    report = {}
    print(f"{'model':9} {'art is':>11} {'n':>4} {'error, 1 / 2':>15} {'IoU, 1 / 2':>15} {'worse':>6} {'better':>7}")
    for model in ("rmbg", "birefnet"):
        net = load_checkpoint(ROOT / "models" / "starter" / f"{model}.safetensors", CONFIGS["starter"])
        size = CONFIGS["starter"].input_size

        def one(part: Picture, net: BiRefNet = net, size: int = size) -> torch.Tensor:
            mask: torch.Tensor = net(network_input(part, size, torch.device("cpu")))[0, 0].sigmoid()
            return mask

        rows = []
        for factor in (1, 1.5, 2, 3, 4):
            for rgb, alpha in pairs(arguments.pictures, busy=arguments.busy):
                picture, truth = small_in_picture(rgb, alpha, factor)
                coarse = one(picture)
                box = art_box(coarse, picture.height, picture.width, worth=1)
                if box is None:
                    continue
                share = (box[2] - box[0]) * (box[3] - box[1]) / truth.size
                masks = (mask_at_size(coarse, *truth.shape), full_mask(picture, one, detail=True, worth=1))
                rows.append((share, *(score for mask in masks for score in scores(mask.numpy(), truth))))
        for low, high in itertools.pairwise(SHARES):
            chosen = np.array([row[1:] for row in rows if low < row[0] <= high])
            if len(chosen):
                error1, iou1, error2, iou2 = chosen.mean(axis=0)
                gain = chosen[:, 3] - chosen[:, 1]
                worse, better = int((gain < -0.03).sum()), int((gain > 0.03).sum())
                report[f"{model}/{low}-{high}"] = [len(chosen), error1, error2, iou1, iou2, worse, better]
                print(
                    f"{model:9} {f'{low:g} to {high:g}':>11} {len(chosen):>4} {f'{error1:.3f} / {error2:.3f}':>15} "
                    f"{f'{iou1:.3f} / {iou2:.3f}':>15} {worse:>6} {better:>7}"
                )
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
