"""How well edge colours are cleaned: `python -m benchmarks.edges` (needs requirements/benchmarks.txt).

Composites with known foreground colours and known alpha: the cutout is laid on black, white and red, and compared with
the true foreground on the same colour, over the soft pixels. No cleaning is the baseline; pymatting's
estimate_foreground_ml (Germer et al. 2021, "Fast Multi-Level Foreground Estimation") the reference.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from worker.images import Picture, clean_colours, cut_out

Array = np.ndarray[Any, Any]
BACKDROPS = {"black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0)}


def scene(size: int, kind: str, seed: int) -> tuple[Array, Array, Array]:
    """(foreground, alpha, composite): (H, W, 3), (H, W), (H, W, 3), float64, colours 0-255, alpha 0-1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size

    def pattern() -> Array:
        coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.float32)
        return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.float64)

    fore = pattern()
    back = np.full((size, size, 3), rng.integers(0, 256, 3), np.float64) if kind != "photo" else pattern()
    if kind == "hair":
        alpha: Array = np.zeros((size, size), np.float32)
        for _ in range(120):
            a, b = rng.integers(0, size, (2, 2))
            cv2.line(alpha, a.tolist(), b.tolist(), 1.0, 1 + size // 512, cv2.LINE_AA)
        cv2.circle(alpha, (size // 2, size // 2), size // 4, 1.0, -1, cv2.LINE_AA)
        alpha = cv2.GaussianBlur(alpha, (0, 0), 1 + size / 1024)
    else:
        softness = {"flat": 0.01, "photo": 0.03, "glow": 0.15}[kind]
        alpha = np.clip((0.3 - np.hypot(x - 0.5, y - 0.5)) / softness + 0.5, 0, 1)
    alpha = np.asarray(alpha, np.float64)
    composite = alpha[..., None] * fore + (1 - alpha[..., None]) * back
    return fore, alpha, composite.round()


def error(colours: Array, fore: Array, alpha: Array) -> dict[str, float]:
    """Mean absolute difference (0-255) of the re-composites over soft pixels, by backdrop."""
    soft = (alpha > 0.02) & (alpha < 0.98)
    a = alpha[soft][:, None]
    # The backdrop's own share cancels, so that the three differ by clipping and rounding to 8 bits alone.
    return {
        name: float(
            np.abs(
                (a * colours[soft] + (1 - a) * np.array(backdrop)).round()
                - (a * fore[soft] + (1 - a) * np.array(backdrop)).round()
            ).mean()
        )
        for name, backdrop in BACKDROPS.items()
    }


def ours(composite: Array, alpha: Array) -> Array:
    rgb = torch.from_numpy(composite.astype(np.uint8))
    return clean_colours(rgb, torch.from_numpy(alpha.astype(np.float32))).numpy().astype(np.float64)


def reference(composite: Array, alpha: Array) -> Array:
    from pymatting import estimate_foreground_ml

    return np.asarray(estimate_foreground_ml(composite / 255, alpha)) * 255


def median_times(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall time and processor time of all threads, in ms: on a busy machine only the second can be compared."""
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return statistics.median(t[0] for t in times) * 1000, statistics.median(t[1] for t in times) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--large", action="store_true", help="also time 4500x5400 (some minutes)")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    methods: dict[str, Callable[[Array, Array], Array]] = {
        "none": lambda composite, alpha: composite,
        "ours": ours,
        "pymatting": reference,
    }
    report: dict[str, Any] = {"error": {}, "ms": {}}
    print(f"{'art':8} {'method':10} " + " ".join(f"{name:>7}" for name in BACKDROPS) + "   mean error of re-composite")
    for kind in ("flat", "photo", "hair", "glow"):
        for name, method in methods.items():
            errors = []
            for seed in range(arguments.seeds):
                fore, alpha, composite = scene(512, kind, seed)
                errors.append(error(method(composite, alpha), fore, alpha))
            means = {backdrop: statistics.mean(e[backdrop] for e in errors) for backdrop in BACKDROPS}
            report["error"][f"{kind}/{name}"] = means
            print(f"{kind:8} {name:10} " + " ".join(f"{value:7.2f}" for value in means.values()))
    print(f"{'size':10} {'method':10} {'ms':>8} {'CPU ms':>8}   soft pixels")
    for width, height in ((1024, 1024), (4500, 5400)) if arguments.large else ((1024, 1024),):
        _, alpha, composite = (part[:height, :width] for part in scene(max(width, height), "hair", 0))
        soft = float(((alpha > 0) & (alpha < 1)).mean())
        picture = Picture(np.ascontiguousarray(composite.astype(np.uint8)), None)
        mask = torch.from_numpy(np.ascontiguousarray(alpha.astype(np.float32)))
        timed: dict[str, Callable[[], object]] = {
            "raw": functools.partial(cut_out, picture, mask, clean=False),
            "ours": functools.partial(cut_out, picture, mask),
            "pymatting": functools.partial(reference, composite, alpha),
        }
        for name, run in timed.items():
            run()  # compilation and first touches
            wall, cpu = median_times(run, 3)
            report["ms"][f"{width}x{height}/{name}"] = {"wall": wall, "cpu": cpu}
            print(f"{f'{width}x{height}':10} {name:10} {wall:8.0f} {cpu:8.0f}   {soft:.1%}")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
