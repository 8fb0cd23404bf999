"""Write PNG files fast: one cheap filter and a fast deflate, lossless.

Source: W3C PNG specification, third edition: chunk layout (5.3), filter type 2 "Up" (9.2), pHYs (11.3.4.3), sRGB
(11.3.2.5). A 4500x5400 RGBA design takes about a fortieth of Pillow's default time for a file 15 % larger; a fixed
cheap filter is worth more than a higher level (field notes, section 5).
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Colour type by number of channels.
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
#: Rows are filtered and compressed in bands of about this many bytes, so that the working copy stays small.
_BAND_BYTES = 8 * 2**20
_INCH_M = 0.0254


def encode_png(pixels: npt.NDArray[np.uint8], dpi: tuple[float, float] | None = None) -> Iterator[bytes]:
    """The parts of a PNG file, to be written in order.

    Args:
        pixels: (H, W), (H, W, 3) or (H, W, 4) uint8: grey, RGB or straight-alpha RGBA, sRGB.
        dpi: horizontal and vertical pixels per inch, stored as pHYs (pixels per metre).
    Raises:
        ValueError: another type, shape or an empty picture.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
        raise ValueError(f"cannot write a {pixels.dtype} array of shape {pixels.shape} as PNG")
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels not in _COLOUR_TYPES:
        raise ValueError(f"a PNG has 1, 3 or 4 channels here, not {channels}")

    yield _SIGNATURE
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0))
    yield _chunk(b"sRGB", b"\x00")  # perceptual
    if dpi is not None:
        x, y = (round(value / _INCH_M) for value in dpi)
        yield _chunk(b"pHYs", struct.pack(">IIB", x, y, 1))

    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    deflate = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 15)
    step = max(1, _BAND_BYTES // (width * channels + 1))
    for start in range(0, height, step):
        data = deflate.compress(_filter_up(rows, start, min(start + step, height)))
        if data:
            yield _chunk(b"IDAT", data)
    yield _chunk(b"IDAT", deflate.flush())
    yield _chunk(b"IEND", b"")


def _filter_up(rows: npt.NDArray[np.uint8], start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Rows start..stop as filtered scanlines: a filter-type byte, then the difference to the row above, modulo 256."""
    out = np.empty((stop - start, rows.shape[1] + 1), np.uint8)
    out[:, 0] = 2
    if start:
        np.subtract(rows[start:stop], rows[start - 1 : stop - 1], out=out[:, 1:])
    else:
        out[0, 1:] = rows[0]  # the row above the first is zero
        np.subtract(rows[1:stop], rows[: stop - 1], out=out[1:, 1:])
    return out


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
