"""Good pixels with bad company: colour profiles and EXIF blocks that are broken, huge or endless."""

import random
import struct
from collections.abc import Iterator

from PIL import Image, ImageCms

from tests.hostile.building import (
    COLOURS,
    LOSSY,
    RATIONAL,
    SHORT,
    Case,
    Right,
    chunk,
    jpeg,
    longs,
    quarters,
    saved,
    segment,
    simple_png,
    tiff,
)

SIZE = (48, 32)
RIGHT = Right(SIZE, COLOURS)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
#: The same numbers under another name, so that the profile is used rather than recognised.
NAMED = SRGB.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


def cases() -> Iterator[Case]:
    yield from _profiles()
    yield from _orientations()
    yield from _exif_blocks()


def _profile(change: dict[int, bytes], base: bytes = NAMED) -> bytes:
    changed = bytearray(base)
    for at, value in change.items():
        changed[at : at + len(value)] = value
    return bytes(changed)


def _profiles() -> Iterator[Case]:
    # Offsets: 0 size, 12 class, 16 colour space, 20 connection space, 36 signature, 128 number of tags, 132 first tag.
    broken = {
        "empty": b"",
        "one-byte": b"\0",
        "text": b"this is no profile" * 50,
        "random": random.Random(7).randbytes(3000),
        "header-only": NAMED[:128],
        "cut-off": NAMED[: len(NAMED) // 2],
        "size-of-4-gb": _profile({0: b"\xff" * 4}),
        "size-zero": _profile({0: bytes(4)}),
        "no-signature": _profile({36: b"none"}),
        "4-billion-tags": _profile({128: b"\xff" * 4}),
        "no-tags": _profile({128: bytes(4)}),
        "tag-outside": _profile({136: b"\xff" * 8}),
        "tags-of-noise": NAMED[:132] + random.Random(8).randbytes(len(NAMED) - 132),
        "for-cmyk": _profile({16: b"CMYK"}),
        "for-grey": _profile({16: b"GRAY"}),
        "for-15-colours": _profile({16: b"FCLR"}),
        "for-nothing": _profile({16: bytes(4)}),
        "device-link": _profile({12: b"link"}),
        "named-colours": _profile({12: b"nmcl"}),
        "connection-of-noise": _profile({20: b"????"}),
        "curves-of-4-billion": _curves(),
    }
    for name, profile in broken.items():
        # A profile that cannot be used leaves the numbers as they are; one that can may turn them into others.
        loose = name in ("tags-of-noise", "curves-of-4-billion", "device-link")
        outcome = Right(SIZE) if loose else RIGHT
        yield Case(f"icc-{name}-png", saved(quarters(), "PNG", icc_profile=profile), outcome)
    for form in ("JPEG", "WEBP", "TIFF"):
        for name in ("random", "cut-off", "for-cmyk", "size-of-4-gb"):
            options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
            data = saved(quarters(), form, icc_profile=broken[name], **options)
            yield Case(f"icc-{name}-{form.lower()}", data, Right(SIZE, COLOURS, LOSSY))
    yield Case("icc-that-works", saved(quarters(), "PNG", icc_profile=NAMED), RIGHT)
    yield Case(
        "icc-of-2-mb",
        saved(quarters(), "JPEG", quality=95, icc_profile=NAMED + bytes(2_000_000)),
        Right(SIZE, COLOURS, LOSSY),
    )
    parts = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes((number, 9)) + bytes(100)) for number in (3, 1, 1, 200))
    yield Case("icc-in-parts-that-are-missing", jpeg(parts), Right(SIZE, COLOURS, LOSSY))
    yield Case("icc-without-deflate", simple_png(chunk(b"iCCP", b"profile\0\0garbage")), None)
    yield Case("icc-of-an-unknown-method", simple_png(chunk(b"iCCP", b"profile\0\x09garbage")), None)


def _curves() -> bytes:
    """Every curve of the profile says that it has four billion points."""
    changed = NAMED
    for kind in (b"curv\0\0\0\0", b"para\0\0\0\0"):
        at = changed.find(kind)
        while at >= 0:
            changed = changed[: at + 8] + b"\xff" * 4 + changed[at + 12 :]
            at = changed.find(kind, at + 8)
    return changed


def _turned(orientation: int) -> tuple[tuple[int, ...], ...]:
    """Colours of the quarters as a viewer shows them: top left, top right, bottom left, bottom right."""
    a, b, c, d = COLOURS
    return {
        1: (a, b, c, d), 2: (b, a, d, c), 3: (d, c, b, a), 4: (c, d, a, b),
        5: (a, c, b, d), 6: (c, a, d, b), 7: (d, b, c, a), 8: (b, d, a, c),
    }[orientation]  # fmt: skip


def _orientations() -> Iterator[Case]:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        size = SIZE if orientation < 5 else SIZE[::-1]
        for form, options in (("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("TIFF", {})):
            data = saved(quarters(), form, exif=exif, **options)
            yield Case(f"orientation-{orientation}-{form.lower()}", data, Right(size, _turned(orientation), LOSSY))


def _exif_blocks() -> Iterator[Case]:
    def directory(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
        body = struct.pack("<H", len(entries))
        for tag, kind, count, value in entries:
            body += struct.pack("<HHII", tag, kind, count, value)
        return b"II*\0\x08\0\0\0" + body + longs(following)

    blocks = {
        "empty": b"",
        "random": random.Random(9).randbytes(500),
        "header-only": b"II*\0\x08\0\0\0",
        "directory-outside": b"II*\0\xff\xff\xff\xff",
        "endless": directory((0x0112, SHORT, 1, 1), following=8),
        "leads-to-itself": directory((34665, 4, 1, 8), (34853, 4, 1, 8), (40965, 4, 1, 8), following=8),
        "orientation-0": directory((0x0112, SHORT, 1, 0)),
        "orientation-9": directory((0x0112, SHORT, 1, 9)),
        "orientation-65535": directory((0x0112, SHORT, 1, 65_535)),
        "orientation-of-none": directory((0x0112, SHORT, 0, 0)),
        "orientation-of-4-billion": directory((0x0112, SHORT, 2**32 - 1, 8)),
        "orientation-as-text": directory((0x0112, 2, 4, 0x00333231)),
        "orientation-as-fraction": directory((0x0112, RATIONAL, 1, 8)),
        "65535-entries": b"II*\0\x08\0\0\0\xff\xff" + directory((0x9999, 7, 2**31, 8))[10:22] * 2000,
        "overlapping": b"II*\0\x08\0\0\0" + struct.pack("<H", 4000)
        + b"".join(struct.pack("<HHII", 0x8000 + i, 7, 40_000, 8) for i in range(4000)),
        "resolution-by-zero": tiff([(0x0128, SHORT, 1, 2), (0x011A, RATIONAL, 1, longs(300, 0))]),
        "resolution-of-many": tiff([(0x0128, SHORT, 1, 2), (0x011A, RATIONAL, 5000, longs(300, 1) * 5000)]),
    }  # fmt: skip
    for name, block in blocks.items():
        data = jpeg(segment(0xE1, b"Exif\0\0" + block[:65_000]))
        yield Case(f"exif-{name}-jpeg", data, Right(SIZE, COLOURS, LOSSY))
        yield Case(f"exif-{name}-png", simple_png(chunk(b"eXIf", block)), RIGHT)
    huge = blocks["overlapping"] + bytes(3_000_000)
    yield Case("exif-of-3-mb-png", simple_png(chunk(b"eXIf", huge)), RIGHT)
    yield Case("exif-of-3-mb-webp", saved(quarters(), "WEBP", lossless=True, exif=huge), RIGHT)
    xmp = b"http://ns.adobe.com/xap/1.0/\x00" + b'<x tiff:Orientation="6"' * 2000
    turned = Right(SIZE[::-1], _turned(6), LOSSY)
    yield Case("xmp-with-an-orientation", jpeg(segment(0xE1, xmp)), turned)
