"""Files made byte by byte: what encoders would refuse to write."""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

NOT_AN_IMAGE = "source_not_an_image"
TOO_LARGE = "source_too_large"

#: The colours of the four quarters of QUARTERS: top left, top right, bottom left, bottom right.
COLOURS = ((220, 40, 30), (30, 180, 60), (40, 60, 210), (240, 220, 50))
#: Decoding of lossy formats may move a colour by so much.
LOSSY = 14


@dataclass(frozen=True)
class Right:
    """The picture that must come out.

    Attributes:
        size: width, height.
        quarters: colours in the middle of its four quarters, RGB or RGBA; None when only the size is promised.
        tolerance: how far each channel may be off.
    """

    size: tuple[int, int]
    quarters: tuple[tuple[int, ...], ...] | None = None
    tolerance: int = 2


@dataclass(frozen=True)
class Case:
    """One file of the corpus.

    Attributes:
        outcome: the code of the only right error, the right picture, or None: any picture or error code, nothing else.
    """

    name: str
    data: bytes = field(repr=False)
    outcome: str | Right | None


def quarters(width: int = 48, height: int = 32, colours: Iterable[tuple[int, ...]] = COLOURS) -> Image.Image:
    """A picture of four quarters, each in one colour."""
    first, second, third, fourth = (np.array(colour, np.uint8) for colour in colours)
    pixels = np.empty((height, width, len(first)), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = first, second
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = third, fourth
    return Image.fromarray(pixels)


def noise(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    """A picture that does not compress, so that every part of its file is pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """The file of a picture, as Pillow writes it."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# --- PNG --------------------------------------------------------------------------------------------------------------

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def chunk(kind: bytes, data: bytes = b"", crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def header(width: int, height: int, depth: int = 8, colour: int = 2, *rest: int) -> bytes:
    """IHDR; `rest` is compression, filter and interlace method."""
    return chunk(b"IHDR", struct.pack(">IIBB", width, height, depth, colour) + bytes(rest or (0, 0, 0)))


def rows(image: Image.Image, filter_type: int = 0) -> bytes:
    """Scanlines with their filter bytes."""
    pixels = np.asarray(image)
    flat = pixels.reshape(pixels.shape[0], -1).view(np.uint8)
    return np.insert(flat, 0, filter_type, axis=1).tobytes()


def png(*chunks: bytes) -> bytes:
    return PNG_SIGNATURE + b"".join(chunks)


def idat(data: bytes, level: int = 6) -> bytes:
    return chunk(b"IDAT", zlib.compress(data, level))


def simple_png(*before: bytes, after: Iterable[bytes] = (), image: Image.Image | None = None) -> bytes:
    """A good 8-bit RGB PNG with chunks added before and after its pixels."""
    image = image or quarters()
    return png(header(*image.size), *before, idat(rows(image)), *after, END)


def zeros(size: int) -> bytes:
    """`size` zero bytes (rounded down to MB), deflated: a thousandth of that. The checksum at the end is wrong."""
    packer = zlib.compressobj(9)
    first, again = (packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (size // 2**20 - 1) + packer.flush()


# --- JPEG -------------------------------------------------------------------------------------------------------------


def segment(marker: int, data: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jpeg(*segments: bytes, **options: Any) -> bytes:
    """A good JPEG with segments added after its first marker."""
    data = saved(quarters(), "JPEG", quality=95, subsampling=0, **options)
    return data[:2] + b"".join(segments) + data[2:]


def replaced(data: bytes, marker: int, change: Mapping[int, bytes]) -> bytes:
    """A JPEG with bytes of its first segment of this kind changed; positions count from the marker."""
    at = data.index(bytes((0xFF, marker)))
    changed = bytearray(data)
    for position, value in change.items():
        changed[at + position : at + position + len(value)] = value
    return bytes(changed)


# --- TIFF -------------------------------------------------------------------------------------------------------------

SHORT, LONG, RATIONAL, SLONG = 3, 4, 5, 9
_FORMS = {SHORT: "H", SLONG: "i"}
Tag = tuple[int, int, int, int | bytes]  # tag, type, count, value or the bytes of a value that does not fit


def tiff(tags: Iterable[Tag], data: bytes = b"", following: int = 0, order: str = "<") -> bytes:
    """A TIFF of one directory. `data` lies at TIFF_DATA; values that do not fit come after it."""
    entries = sorted(tags, key=lambda tag: tag[0])
    start = TIFF_DATA + len(data)
    directory_at = start + sum(len(value) for *_, value in entries if isinstance(value, bytes))
    body, extra = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHI", tag, kind, count)
        if isinstance(value, bytes):
            body += struct.pack(order + "I", start + len(extra))
            extra += value
        else:
            body += struct.pack(order + _FORMS.get(kind, "I"), value).ljust(4, b"\0")[:4]
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", directory_at) + data + extra + body + struct.pack(order + "I", following)


#: Where `data` of a TIFF lies.
TIFF_DATA = 8


def grey_tags(across: int = 16, down: int = 16, /, **changes: Tag | None) -> list[Tag]:
    """Tags of an 8-bit grey, uncompressed picture in one strip; a change to None leaves one out."""
    tags: dict[str, Tag | None] = {
        "width": (256, LONG, 1, across),
        "height": (257, LONG, 1, down),
        "bits": (258, SHORT, 1, 8),
        "compression": (259, SHORT, 1, 1),
        "photometric": (262, SHORT, 1, 1),
        "offsets": (273, LONG, 1, TIFF_DATA),
        "samples": (277, SHORT, 1, 1),
        "rows": (278, LONG, 1, down),
        "counts": (279, LONG, 1, min(across * down, 2**32 - 1)),
    }
    return [tag for tag in (tags | changes).values() if tag is not None]


def longs(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


# --- BMP, GIF, boxes --------------------------------------------------------------------------------------------------


def bmp(width: int, height: int, bits: int, compression: int, data: bytes, palette: bytes = b"", **odd: int) -> bytes:
    """A BMP with a BITMAPINFOHEADER; `odd` overrides header_size, planes, colours or offset."""
    offset = 14 + 40 + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII",
        odd.get("header_size", 40), width, height, odd.get("planes", 1), bits, compression, len(data), 2835, 2835,
        odd.get("colours", len(palette) // 4), 0,
    )  # fmt: skip
    start = b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, odd.get("offset", offset))
    return start + info + palette + data


def gif(screen: tuple[int, int], *blocks: bytes, palette: bytes | None = bytes((0, 0, 0, 250, 10, 20))) -> bytes:
    """A GIF of blocks; the global palette has two colours."""
    flags = 0x80 if palette else 0
    return b"GIF89a" + struct.pack("<HHBBB", *screen, flags, 0, 0) + (palette or b"") + b"".join(blocks) + b";"


def gif_frame(x: int, y: int, width: int, height: int, code_size: int = 2, codes: bytes | None = None) -> bytes:
    """A frame of pixels of the second colour, or whose pixels are the given LZW codes."""
    if codes is None:
        codes = _lzw(1, min(width * height, 400))
    blocks = b"".join(bytes((len(codes[at : at + 255]),)) + codes[at : at + 255] for at in range(0, len(codes), 255))
    return b"," + struct.pack("<HHHHB", x, y, width, height, 0) + bytes((code_size,)) + blocks + b"\0"


def _lzw(index: int, count: int) -> bytes:
    """`count` times the same index, in codes of three bits: the table is cleared before it can grow."""
    codes = [4, index] * count + [5]
    bits = "".join(f"{code:03b}"[::-1] for code in codes)
    return bytes(int(bits[at : at + 8].ljust(8, "0")[::-1], 2) for at in range(0, len(bits), 8))


def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """A WebP container."""
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4 if size is None else size) + b"WEBP" + body
