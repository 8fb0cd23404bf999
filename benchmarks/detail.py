"""What the second pass of `detail: high` gains: `python -m benchmarks.detail`.

Held-out designs (tests/data/heldout) stand small in a larger flat picture, at a half and a quarter of its side; each
starter model cuts them out with one pass and with two. Mean absolute alpha error and IoU inside the art's box, seconds.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from worker.images import Picture, network_input
from worker.images.detail import full_mask
from worker.nets import CONFIGS, BiRefNet, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
HELDOUT = ROOT / "tests" / "data" / "heldout"


def pairs(limit: int) -> list[tuple[Any, Any]]:
    """(rgb, alpha 0-255) of held-out designs, uint8."""
    found = []
    for alpha_path in sorted(HELDOUT.glob("*_alpha.png"))[:limit]:
        stem = alpha_path.name.removesuffix("_alpha.png")
        source = next(path for path in HELDOUT.glob(f"{stem}.*"))
        found.append((np.array(Image.open(source).convert("RGB")), np.array(Image.open(alpha_path).convert("L"))))
    return found


def small_in_picture(rgb: Any, alpha: Any, factor: int) -> tuple[Picture, Any, tuple[slice, slice]]:
    """The design in the middle of a picture `factor` times its side, in the colour of its own corner."""
    height, width = alpha.shape
    canvas = np.empty((height * factor, width * factor, 3), np.uint8)
    canvas[:] = np.median(rgb[:8, :8].reshape(-1, 3), axis=0)
    place = (
        slice((factor - 1) * height // 2, (factor - 1) * height // 2 + height),
        slice((factor - 1) * width // 2, (factor - 1) * width // 2 + width),
    )
    canvas[place] = rgb
    return Picture(canvas, None), alpha, place


def cut(net: BiRefNet, picture: Picture, size: int, detail: bool) -> torch.Tensor:
    def one(part: Picture) -> torch.Tensor:
        mask: torch.Tensor = net(network_input(part, size, torch.device("cpu")))[0, 0].sigmoid()
        return mask

    return full_mask(picture, one, detail=detail)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(os.cpu_count() or 1)
    report = {}
    print(f"{'model':9} {'art is':>8} {'passes':>7} {'alpha error':>12} {'IoU':>7} {'seconds':>8}")
    for model in ("rmbg", "birefnet"):
        net = load_checkpoint(ROOT / "models" / "starter" / f"{model}.safetensors", CONFIGS["starter"])
        for factor in (2, 4):
            for detail in (False, True):
                errors, ious, seconds = [], [], []
                for rgb, alpha in pairs(arguments.pictures):
                    picture, truth, place = small_in_picture(rgb, alpha, factor)
                    started = time.perf_counter()
                    found = cut(net, picture, CONFIGS["starter"].input_size, detail)[place].numpy()
                    seconds.append(time.perf_counter() - started)
                    errors.append(float(np.abs(found - truth / 255).mean()))
                    a, b = found > 0.5, truth > 127
                    ious.append(float((a & b).sum() / max(1, (a | b).sum())))
                row = {name: statistics.mean(v) for name, v in (("mae", errors), ("iou", ious))}
                row["seconds"] = statistics.median(seconds)
                report[f"{model}/1:{factor}/{2 if detail else 1}"] = row
                print(
                    f"{model:9} {f'1/{factor}':>8} {2 if detail else 1:>7} {row['mae']:>12.4f} {row['iou']:>7.3f} "
                    f"{row['seconds']:>8.2f}"
                )
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
