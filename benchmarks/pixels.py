"""What happens to pixels around the network: `python -m benchmarks.pixels [--size 4500x5400] [--threads 1]`.

Medians of decode, network input, mask, cutout and PNG, each step beside the same one by Pillow's defaults in the same
run, and the PNG writer on four kinds of art.
"""

import io
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.report import arguments_of, bars, median_ms, table, write_json
from worker.images import Picture, cut_out, decode, encode_png, mask_at_size, network_input

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


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


def arts(cutout: Pixels) -> dict[str, Pixels]:
    """RGBA of four kinds, of the cutout's size: the design, flat shapes, a photo-like texture, noise."""
    height, width = cutout.shape[:2]
    rng = np.random.default_rng(1)
    flat = cv2.resize(rng.integers(0, 256, (9, 7, 4), np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    coarse = cv2.resize(rng.integers(0, 256, (40, 30, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 4, (height, width, 1)).astype(np.float32)
    photo = np.dstack((np.clip(coarse + grain, 0, 255).astype(np.uint8), np.full((height, width), 255, np.uint8)))
    noise = rng.integers(0, 256, (height, width, 4), np.uint8)
    return {"design": cutout, "flat art": np.asarray(flat, np.uint8), "photo": photo, "noise": noise}


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--size", default="4500x5400", help="width x height of the design")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of OpenCV and torch; Pillow has one")
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split("x"))
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    picture, small_mask = design(width, height)
    rgb, mask = Image.fromarray(picture.rgb), mask_at_size(small_mask, height, width)
    cutout = cut_out(picture, mask)
    png, jpeg = b"".join(encode_png(picture.rgb)), saved(rgb, "JPEG", quality=92)
    small = Image.fromarray((small_mask.numpy() * 255).astype(np.uint8))
    bilinear = Image.Resampling.BILINEAR

    steps: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {
        "decode PNG": (lambda: decode(png, pixel_limit=10**9), lambda: opened(png)),
        "decode JPEG": (lambda: decode(jpeg, pixel_limit=10**9), lambda: opened(jpeg)),
        "network input, 1024 px": (
            lambda: network_input(picture, 1024, torch.device("cpu")),
            lambda: rgb.resize((1024, 1024), bilinear),
        ),
        "mask to full size": (
            lambda: mask_at_size(small_mask, height, width),
            lambda: small.resize((width, height), bilinear),
        ),
        "cutout, source's colours": (
            lambda: cut_out(picture, mask, clean=False),
            lambda: Image.merge("RGBA", (*rgb.split(), Image.fromarray((mask * 255).to(torch.uint8).numpy()))),
        ),
        "cutout, clean colours": (lambda: cut_out(picture, mask), None),
    }
    times: dict[str, dict[str, float]] = {}
    for name, (ours, theirs) in steps.items():
        times[name] = {"ours_ms": median_ms(ours, arguments.repeats)}
        if theirs is not None:
            times[name]["pillow_ms"] = median_ms(theirs, 3)
    files: dict[str, dict[str, float]] = {}
    for name, art in arts(cutout).items():
        image = Image.fromarray(art)
        ours_ms = median_ms(lambda art=art: b"".join(encode_png(art)), arguments.repeats)  # type: ignore[misc]
        theirs_ms = median_ms(lambda image=image: saved(image, "PNG"), 1)  # type: ignore[misc]
        sizes = len(b"".join(encode_png(art))), len(saved(image, "PNG"))
        files[name] = {
            "ours_ms": ours_ms,
            "pillow_ms": theirs_ms,
            "speed_ratio": theirs_ms / ours_ms,
            "size_ratio": sizes[0] / sizes[1],
            "ours_mb": sizes[0] / 1e6,
        }
    table(
        f"{arguments.size}, {arguments.threads} thread(s)",
        ("step", "ours, ms", "Pillow, ms", "ratio"),
        [
            (name, f"{t['ours_ms']:.1f}", f"{t['pillow_ms']:.1f}", f"{t['pillow_ms'] / t['ours_ms']:.1f}")
            if "pillow_ms" in t
            else (name, f"{t['ours_ms']:.1f}", "", "")
            for name, t in times.items()
        ],
    )
    table(
        "RGBA to PNG, against Pillow's default",
        ("art", "ours, ms", "Pillow, ms", "times as fast", "times the size", "MB"),
        [
            (name, *(f"{f[key]:.2f}" for key in ("ours_ms", "pillow_ms", "speed_ratio", "size_ratio", "ours_mb")))
            for name, f in files.items()
        ],
    )
    write_json(arguments.json, {"size": arguments.size, "threads": arguments.threads, "steps": times, "png": files})
    bars(
        arguments.plot,
        f"Times as fast as Pillow, {arguments.size}, {arguments.threads} thread(s)",
        "times",
        {name: t["pillow_ms"] / t["ours_ms"] for name, t in times.items() if "pillow_ms" in t}
        | {f"PNG, {name}": f["speed_ratio"] for name, f in files.items()},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
