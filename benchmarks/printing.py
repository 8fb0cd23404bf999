"""What print outputs cost: `python -m benchmarks.printing [--size 4500x5400] [--repeats 5]`.

Medians per alpha mode, on one core, for a cutout of the canvas' size, for one that is shrunk to it and one that is
enlarged; and the peak memory that one print adds. "worst" is noise: specks and fades everywhere.
"""

import argparse
import json
import os
import resource
import sys
from functools import partial
from typing import get_args

import cv2
import numpy as np

from benchmarks.report import median_ms
from worker.images.picture import Pixels
from worker.images.print_spec import AlphaMode, PrintSpec
from worker.images.printing import render_print


def cutout(width: int, height: int) -> Pixels:
    """Discs with sharp outlines, one wide glow, and a few thousand specks; colours from a gradient."""
    rng = np.random.default_rng(0)
    alpha = np.zeros((height, width), np.uint8)
    middle, reach = (width // 2, height // 2), min(width, height) // 2
    for step in range(32):  # a glow in rings, smoothed below
        cv2.circle(alpha, middle, reach - step * reach // 64, step * 8, -1)
    alpha = np.asarray(cv2.blur(alpha, (reach // 32 * 2 + 1,) * 2), np.uint8)
    for _ in range(60):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        cv2.circle(alpha, centre, int(rng.integers(width // 40, width // 9)), 255, -1, cv2.LINE_AA)
    alpha[rng.integers(0, height, 3000), rng.integers(0, width, 3000)] = 255
    out = np.empty((height, width, 4), np.uint8)
    out[..., 0] = np.linspace(0, 255, width)[None]
    out[..., 1] = np.linspace(0, 255, height)[:, None]
    out[..., 2] = 128
    out[..., 3] = alpha
    return np.asarray(cv2.copyTo(out, np.where(alpha > 0, 255, 0).astype(np.uint8)), np.uint8)


def noise(width: int, height: int) -> Pixels:
    """Random colours and alpha."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)


def added_peak_mb(art: Pixels, spec: PrintSpec) -> float:
    """Peak memory that one print adds to a process that holds the cutout, result included; in a child of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        render_print(art, spec)
        os.write(write, str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024).encode())
        os._exit(0)
    os.waitpid(child, 0)
    value = float(os.read(read, 64))
    os.close(read)
    os.close(write)
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="4500x5400", help="width x height of the canvas")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split("x"))
    cv2.setNumThreads(1)
    sources = {
        "same size": cutout(width, height),
        "shrunk from 1.2x": cutout(width * 6 // 5, height * 6 // 5),
        "enlarged from 0.3x": cutout(width * 3 // 10, height * 3 // 10),
        "worst": noise(width, height),
    }
    rows: dict[str, float] = {}
    for name, art in sources.items():
        for mode in get_args(AlphaMode):
            spec = PrintSpec(canvas=(width, height), alpha=mode, allow_upscale=True, underbase=name == "worst")
            label = f"{mode}, {name}" + (", underbase" if spec.underbase else "")
            rows[label] = median_ms(partial(render_print, art, spec), arguments.repeats)
            print(f"{label:32} {rows[label]:8.0f} ms")
    peak = {}
    for name in ("same size", "shrunk from 1.2x", "worst"):
        spec = PrintSpec(canvas=(width, height), alpha="halftone", underbase=True)
        peak[name] = added_peak_mb(sources[name], spec)
        print(
            f"peak of halftone, {name}: {peak[name]:.0f} MB, {peak[name] * 2**20 / width / height:.1f} bytes per pixel"
        )
    print(json.dumps({"size": arguments.size, "ms": rows, "peak_mb": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
