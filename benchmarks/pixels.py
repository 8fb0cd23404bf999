"""What happens to pixels around the network: `python -m benchmarks.pixels [--size 4500x5400]`.

Medians of decode, input, mask, cutout and PNG, with the ratio of our PNG writer to Pillow's default in the same run.
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from worker.images import Picture, cut_out, decode, encode_png, mask_at_size, network_input


def design(width: int, height: int) -> tuple[Picture, torch.Tensor]:
    """A print design (shapes, a gradient, soft shadows) on white, and its alpha as a 512 px mask."""
    rng = np.random.default_rng(0)
    alpha = Image.new("L", (width, height))
    y, x = np.mgrid[0:height, 0:width]
    rgb = Image.fromarray(np.stack((x * 255 // width, y * 255 // height, 255 - x * 255 // width), -1).astype(np.uint8))
    draw = ImageDraw.Draw(alpha)
    for _ in range(60):
        cx, cy = int(rng.integers(0, width)), int(rng.integers(0, height))
        r = int(rng.integers(width // 40, width // 9))
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
    mask = alpha.resize((512, 512), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.7))
    picture = Image.new("RGB", (width, height), "white")
    picture.paste(rgb, mask=alpha)
    return Picture(np.array(picture), None), torch.from_numpy(np.asarray(mask, np.float32) / 255)


def median_ms(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="4500x5400", help="width x height of the design")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split("x"))
    torch.set_grad_enabled(False)
    picture, small_mask = design(width, height)
    mask = mask_at_size(small_mask, height, width)
    cutout = cut_out(picture, mask)
    source = b"".join(encode_png(picture.rgb))

    def pillow() -> bytes:
        file = io.BytesIO()
        Image.fromarray(cutout).save(file, "PNG")
        return file.getvalue()

    steps: dict[str, Callable[[], object]] = {
        "decode PNG": lambda: decode(source, pixel_limit=10**9),
        "network input 512": lambda: network_input(picture, 512, torch.device("cpu")),
        "mask to full size": lambda: mask_at_size(small_mask, height, width),
        "cutout": lambda: cut_out(picture, mask),
        "PNG, ours": lambda: b"".join(encode_png(cutout)),
        "PNG, Pillow default": pillow,
    }
    rows = {name: median_ms(run, 2 if run is pillow else arguments.repeats) for name, run in steps.items()}
    ours, theirs = len(b"".join(encode_png(cutout))), len(pillow())
    for name, value in rows.items():
        print(f"{name:24} {value:9.1f} ms")
    speed, size = rows["PNG, Pillow default"] / rows["PNG, ours"], ours / theirs
    print(f"PNG: {speed:.1f} times as fast as Pillow's default, {size:.2f} times its size ({ours / 1e6:.1f} MB)")
    print(json.dumps({"size": arguments.size, "ms": rows, "png_speed_ratio": speed, "png_size_ratio": size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
