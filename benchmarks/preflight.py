"""What looking at a cutout costs: `python -m benchmarks.preflight [--size 4500x5400]`.

Medians of preflight, second opinion, proofs and flat outputs, on one thread. "noise" is the worst case: every pixel its
own island.
"""

import argparse
import json
import sys
from collections.abc import Callable

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.pixels import design
from benchmarks.report import median_ms
from worker.images import cut_out, mask_at_size
from worker.images.opinion import second_opinion
from worker.images.preflight import preflight
from worker.images.proofs import encode_webp, flatten, mask_of, proof, shrink, thumbnail
from worker.images.sheet import SheetRow, contact_sheet


def lettered(width: int, height: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A cutout with soft discs and crisp lines of lettering, down to hairlines and dots."""
    picture, small_mask = design(width, height)
    cutout = cut_out(picture, mask_at_size(small_mask, height, width))
    layer = Image.new("L", (width, height))
    draw = ImageDraw.Draw(layer)
    for row in range(12):
        size = max(8, width // (8 + 6 * row))
        position = (width // 10, height * (row + 1) // 14)
        draw.text(position, "Print me on a T-shirt", fill=255, font=ImageFont.load_default(size))
    for row in range(20):
        y = height * (row + 1) // 21
        draw.line((width // 10, y, width * 9 // 10, y), fill=255, width=1 + row % 6)
        draw.point((width // 20, y), fill=255)
    ink = np.asarray(layer)
    cutout[ink > 0, :3] = (20, 60, 120)
    cutout[..., 3] = np.maximum(cutout[..., 3], ink)
    return cutout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="4500x5400", help="width x height of the cutout")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split("x"))
    torch.set_grad_enabled(False)
    cv2.setNumThreads(1)
    cutout = lettered(width, height)
    noise = cutout.copy()
    noise[..., 3] = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (height, width), p=[0.9, 0.1])
    small = shrink(cutout, 640)
    alpha = mask_of(shrink(cutout, 512))
    masks = {"one": alpha, "two": np.roll(alpha, 9, axis=1)}
    reports = {name: preflight(cutout) for name in masks}
    opinion = second_opinion(masks, reports)
    row = SheetRow(small[..., :3], {"one": small, "two": small}, opinion)

    steps: dict[str, Callable[[], object]] = {
        "preflight": lambda: preflight(cutout, dpi=(300, 300)),
        "preflight, noise": lambda: preflight(noise),
        "second opinion, 2 models": lambda: second_opinion(masks, reports),
        "shrink to 640": lambda: shrink(cutout, 640),
        "proof of the shrunken": lambda: proof(small, "black"),
        "proof on heather": lambda: proof(small, "heather"),
        "proof from full size": lambda: proof(cutout, "black"),
        "thumbnail": lambda: thumbnail(small),
        "proof as WebP 85": lambda: encode_webp(proof(small, "heather"), 85),
        "contact sheet, 2x2": lambda: contact_sheet({"front": row, "back": row}),
        "flatten": lambda: flatten(cutout, "#ffffff"),
        "mask": lambda: mask_of(cutout),
    }
    rows = {name: median_ms(run, arguments.repeats) for name, run in steps.items()}
    for name, value in rows.items():
        print(f"{name:26} {value:9.1f} ms")
    print(json.dumps({"size": arguments.size, "threads": 1, "ms": {name: round(ms, 2) for name, ms in rows.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
