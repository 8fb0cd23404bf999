"""Decode what most files are, 8-bit RGB and RGBA, with faster libraries: the same pixels as Pillow's, in less time.

Pillow has opened the file and read its header; here it gives way only where the libraries agree bit for bit (tested on
generated, truncated and damaged files): JPEG in colour, by libjpeg-turbo's own interface, and PNG of 8 bits a channel,
by OpenCV, each upright and without a colour profile of its own. Damaged files go to Pillow as well, which decides what
is damage: of a JPEG, OpenCV would deliver what it could read without a word.
"""

import zlib

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from isal import igzip_lib, isal_zlib
from PIL import Image

Pixels = npt.NDArray[np.uint8]

#: Chunks that do not change a pixel of an 8-bit RGB or RGBA picture, and their lengths: Pillow refuses a file for a
#: short one, and libpng writes what it thinks of odd ones to stderr, between our lines of log.
_HARMLESS = {
    **{b"IHDR": range(13, 14), b"IDAT": range(2**31), b"IEND": range(1), b"sRGB": range(1, 2), b"gAMA": range(4, 5)},
    **{b"cHRM": range(32, 33), b"pHYs": range(9, 10), b"tIME": range(7, 8), b"sBIT": range(3, 5), b"bKGD": range(6, 7)},
    b"tEXt": range(2, 2**31),
}
#: Those that may come twice, and those that may come after the pixels.
_REPEATED = frozenset({b"IDAT", b"tEXt", b"iTXt"})
_AFTER_PIXELS = frozenset({b"IDAT", b"IEND", b"tEXt", b"tIME"})
#: Chunks that may hold an orientation. Pillow has read them where they come before the pixels. Not zTXt, nor compressed
#: iTXt: libpng would unpack them.
_BEFORE_PIXELS = frozenset({b"eXIf", b"iTXt"})
#: Most chunks that are looked at; a 24-megapixel design has a few thousand, by a writer of 8 kB chunks.
_CHUNKS = 20_000
#: Where Pillow keeps what may hold an orientation.
_ORIENTED = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
_ORIENTATION = 0x0112
#: Pixels are inflated for the check so many bytes at a time, to at most so many.
_PACKED_BYTES, _PIECE_BYTES = 2**16, 2**20


def decode_plain(data: bytes, image: Image.Image) -> tuple[Pixels, Pixels | None] | None:
    """The pixels of a plain file.

    Args:
        data: the whole file. image: the same, opened by Pillow, not loaded; its size is within the limits.
    Returns:
        (H, W, 3) uint8 RGB and (H, W) uint8 alpha (None where the file has none); None when Pillow should decode it.
    """
    info = image.info
    if info.get("icc_profile") or info.get("transparency") is not None:
        return None
    if image.format == "JPEG" and image.mode == "RGB":
        return _decode_jpeg(data, image) if _is_upright(image) else None
    # The orientation of a PNG is asked for otherwise: getexif() would decode the pixels first.
    if image.format == "PNG" and image.mode in ("RGB", "RGBA") and not _ORIENTED & info.keys() and _is_whole_png(data):
        return _decode_png(data, image)
    return None


def _is_upright(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except Exception:  # broken EXIF blocks raise nearly anything
        return False


def _decode_jpeg(data: bytes, image: Image.Image) -> tuple[Pixels, None] | None:
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:  # also for what libjpeg only warns of
        return None
    return (np.asarray(pixels, np.uint8), None) if pixels.shape == (image.height, image.width, 3) else None


def _decode_png(data: bytes, image: Image.Image) -> tuple[Pixels, Pixels | None] | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    channels = len(image.mode)
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (image.height, image.width, channels):
        return None
    rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGB)
    alpha = None if channels == 3 else np.asarray(cv2.extractChannel(pixels, 3), np.uint8)
    return np.asarray(rgb, np.uint8), alpha


def _is_whole_png(data: bytes) -> bool:
    """True for 8 bits a channel, nothing but harmless chunks, each with its right checksum, up to IEND.

    And for exactly as many inflated bytes as the header says. OpenCV inflates whatever there is: a source of 50 MB can
    hold 50 GB, for minutes.
    """
    view, at, pixels, seen = memoryview(data), 8, list[memoryview](), set[bytes]()
    for _ in range(_CHUNKS):
        if at + 12 > len(data):
            return False
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data) or (pixels and kind not in _AFTER_PIXELS) or (kind in seen and kind not in _REPEATED):
            return False
        if length not in _HARMLESS.get(kind, ()) and kind not in _BEFORE_PIXELS:
            return False
        seen.add(kind)
        if kind == b"iTXt" and data[at + 8 : end - 4].partition(b"\0")[2][:1] != b"\0":
            return False
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return False
        # Interlaced rows are counted otherwise; compression and filter have one method only.
        if kind == b"IHDR" and (data[at + 16] != 8 or any(data[at + 18 : at + 21])):
            return False
        if kind == b"IDAT":
            pixels.append(view[at + 8 : end - 4])
        if kind == b"IEND":
            return _inflates_to(pixels, _row_bytes(data) * int.from_bytes(data[20:24], "big"))
        at = end
    return False


def _row_bytes(data: bytes) -> int:
    """Bytes of a row of an 8-bit RGB or RGBA PNG, its filter type included."""
    return 1 + int.from_bytes(data[16:20], "big") * (4 if data[25] == 6 else 3)


def _inflates_to(parts: list[memoryview], size: int) -> bool:
    """Whether a deflate stream ends well after exactly `size` bytes; it is read in pieces, and no further than that."""
    inflate, seen = isal_zlib.decompressobj(), 0
    try:
        for part in parts:
            for start in range(0, len(part), _PACKED_BYTES):
                rest: bytes | memoryview = part[start : start + _PACKED_BYTES]
                is_full = True  # then there may be more to come, also when all input is taken
                while (len(rest) or is_full) and seen <= size and not inflate.eof:
                    piece = inflate.decompress(rest, _PIECE_BYTES)
                    seen, is_full = seen + len(piece), len(piece) == _PIECE_BYTES
                    rest = inflate.unconsumed_tail  # a copy, so what is handed in is small
                if seen > size:
                    return False
    except igzip_lib.IsalError:  # type: ignore[misc]  # the stubs call it a variable
        return False
    return bool(inflate.eof) and seen == size
