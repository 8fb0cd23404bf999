"""Memory for a picture at the limit of 64 megapixels: `python -m tests.hostile.limit webp` measures one format."""

import json
import sys
from collections.abc import Callable

from PIL import Image

from tests.hostile.building import saved
from tests.hostile.decoder import PIXEL_LIMIT, forget_peak, peak_bytes
from worker.images import decode

SIDE = 8000
#: Most memory beyond what the process has, for any format (bytes): 25 a pixel. libwebp is the hungriest.
PROMISED_BYTES = 1_600_000_000


def _turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.new("RGB", (SIDE, SIDE), (9, 99, 200)), "JPEG", exif=exif, progressive=True)


def _deep_tiff() -> bytes:
    return saved(Image.new("F", (SIDE, SIDE), 0.5), "TIFF", compression="tiff_deflate")


KINDS: dict[str, Callable[[], bytes]] = {
    "webp": lambda: saved(
        Image.new("RGBA", (SIDE, SIDE), (9, 99, 200, 40)), "WEBP", lossless=True, quality=0, method=0
    ),
    "turned-jpeg": _turned_jpeg,
    "png": lambda: saved(Image.new("RGBA", (SIDE, SIDE), (9, 99, 200, 40)), "PNG", compress_level=1),
    "avif": lambda: saved(Image.new("RGBA", (SIDE, SIDE), (9, 99, 200, 40)), "AVIF", speed=10),
    "tiff-of-floats": _deep_tiff,
}


def main(kind: str) -> None:
    data = KINDS[kind]()
    before = forget_peak()
    picture = decode(data, pixel_limit=PIXEL_LIMIT)
    pixels = picture.width * picture.height
    peak = peak_bytes() - before
    print(json.dumps({"kind": kind, "pixels": pixels, "peak_bytes": peak, "promised_bytes": PROMISED_BYTES}))


if __name__ == "__main__":
    main(sys.argv[1])
