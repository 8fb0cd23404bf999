"""Small files that ask for much: pixels, inflated bytes, frames, pages, pieces, passes."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.hostile.building import (
    COLOURS,
    END,
    LONG,
    LOSSY,
    NOT_AN_IMAGE,
    PNG_SIGNATURE,
    RATIONAL,
    SHORT,
    TIFF_DATA,
    TOO_LARGE,
    Case,
    Right,
    bmp,
    chunk,
    gif,
    gif_frame,
    grey_tags,
    header,
    idat,
    jpeg,
    longs,
    noise,
    png,
    quarters,
    replaced,
    riff,
    rows,
    saved,
    segment,
    simple_png,
    tiff,
    zeros,
)

RIGHT = Right((48, 32), COLOURS)
LOSSY_RIGHT = Right((48, 32), COLOURS, LOSSY)
#: What deflate bombs unpack to (bytes).
BOMB = 200 * 2**20


def cases() -> Iterator[Case]:
    yield from _pixels()
    yield from _inflated()
    yield from _frames()
    yield from _pieces()
    yield from _directories()


def _pixels() -> Iterator[Case]:
    """Sizes far beyond the limit, in the header only."""
    nothing = idat(bytes(1000))
    files = {
        "png": png(header(60_000, 60_000), nothing, END),
        "png-grey-1": png(header(60_000, 60_000, 1, 0), nothing, END),
        "png-interlaced": png(header(60_000, 60_000, 8, 6, 0, 0, 1), nothing, END),
        "png-of-2-billion": png(header(2**31 - 1, 2**31 - 1), nothing, END),
        "png-just-over": png(header(8001, 8000), nothing, END),
        "png-one-row": png(header(64_000_001, 1), nothing, END),
        "apng": png(header(60_000, 60_000), chunk(b"acTL", struct.pack(">II", 2, 0)), nothing, END),
        "gif": gif((60_000, 60_000), gif_frame(0, 0, 60_000, 60_000)),
        "gif-small-screen": gif((1, 1), gif_frame(0, 0, 60_000, 60_000)),
        "gif-far-frame": gif((1, 1), gif_frame(65_000, 65_000, 500, 500)),
        "jpeg": replaced(jpeg(), 0xC0, {5: struct.pack(">HH", 60_000, 60_000)}),
        "jpeg-progressive": replaced(jpeg(progressive=True), 0xC2, {5: struct.pack(">HH", 60_000, 60_000)}),
        "bmp": bmp(60_000, 60_000, 24, 0, bytes(100)),
        "bmp-top-down": bmp(60_000, -60_000, 24, 0, bytes(100)),
        "bmp-rle": bmp(60_000, 60_000, 8, 1, b"\xff\x01" * 50, bytes(1024)),
        "tiff": tiff(grey_tags(60_000, 60_000), bytes(256)),
        "tiff-deflate": tiff(grey_tags(60_000, 60_000, compression=(259, SHORT, 1, 8)), zlib.compress(bytes(256))),
        "tiff-of-4-billion": tiff(grey_tags(2**32 - 1, 2**32 - 1), bytes(256)),
        "webp-canvas": riff(
            (b"VP8X", bytes((2, 0, 0, 0)) + b"\xff\x3f\0\xff\x3f\0"), (b"ANIM", bytes(6)),
            (b"ANMF", bytes(6) + b"\xff\x3f\0\xff\x3f\0" + bytes(4) + _vp8l(16_384, 16_384)),
        ),
        "webp-lossless": riff((b"VP8L", _vp8l(16_384, 16_384)[8:])),
        "avif": _avif(60_000, 60_000),
        "avif-at-its-own-limit": _avif(16_000, 16_000),
    }  # fmt: skip
    for name, data in files.items():
        # libavif has limits of its own and calls what is beyond them damaged.
        outcome = None if name.startswith("avif") else TOO_LARGE
        yield Case(f"pixel-bomb-{name}", data, outcome)


def _vp8l(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + bytes(10)
    return b"VP8L" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _avif(width: int, height: int) -> bytes:
    data = saved(Image.new("RGB", (48, 32)), "AVIF", speed=10)
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def _inflated() -> Iterator[Case]:
    bomb = zeros(BOMB)
    small = header(48, 32)
    files = {
        "pixels": png(small, chunk(b"IDAT", bomb), END),
        # Whoever goes on inflating once all rows are there is busy for more than a minute.
        "pixels-of-40-gb": png(small, chunk(b"IDAT", zeros(40 * 2**30)), END),
        "ztxt": simple_png(chunk(b"zTXt", b"Comment\0\0" + bomb)),
        "itxt": simple_png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)),
        "iccp": simple_png(chunk(b"iCCP", b"profile\0\0" + bomb)),
        "ztxt-after-the-pixels": simple_png(after=[chunk(b"zTXt", b"Comment\0\0" + bomb)]),
        "many-ztxt": simple_png(*[chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000), 9))] * 80),
    }
    for name, data in files.items():
        yield Case(f"deflate-bomb-png-{name}", data, None)
    strip = tiff(grey_tags(compression=(259, SHORT, 1, 8), counts=(279, LONG, 1, len(bomb))), bomb)
    yield Case("deflate-bomb-tiff-strip", strip, None)
    tags = [tag for tag in grey_tags(compression=(259, SHORT, 1, 8)) if tag[0] not in (273, 278, 279)]
    for kind in (LONG, 9, 16):  # unsigned, signed, 64 bits
        side: int | bytes = 15_000 if kind != 16 else struct.pack("<Q", 15_000)
        tile = [(322, kind, 1, side), (323, kind, 1, side), (324, LONG, 1, TIFF_DATA), (325, LONG, 1, len(bomb))]
        yield Case(f"deflate-bomb-tiff-tile-{kind}", tiff([*tags, *tile], bomb), TOO_LARGE)
    many = longs(*[TIFF_DATA] * 20_000), longs(*[len(bomb)] * 20_000)
    tags = [
        *grey_tags(16, 20_000, compression=(259, SHORT, 1, 8), offsets=None, counts=None, rows=(278, LONG, 1, 1)),
        (273, LONG, 20_000, many[0]),
        (279, LONG, 20_000, many[1]),
    ]
    yield Case("strips-that-overlap", tiff(tags, bomb), NOT_AN_IMAGE)


def _frames() -> Iterator[Case]:
    """Thousands of frames or pages: the first one counts, and the others cost nothing."""
    image = quarters()
    first = saved(image, "GIF")
    frame = gif_frame(0, 0, 3, 3)
    yield Case("frames-gif", first[:-1] + frame * 5000 + b";", RIGHT)
    control = struct.pack(">IIIIIHHBB", 0, 48, 32, 0, 0, 1, 10, 0, 0)
    more = b"".join(
        chunk(b"fcTL", struct.pack(">I", 2 * i + 1) + control[4:])
        + chunk(b"fdAT", struct.pack(">I", 2 * i + 2) + zlib.compress(rows(image)))
        for i in range(3000)
    )
    animation = chunk(b"acTL", struct.pack(">II", 3001, 0)) + chunk(b"fcTL", control)
    yield Case("frames-apng", simple_png(animation, after=[more]), RIGHT)
    yield Case("frames-apng-4-billion-declared", simple_png(chunk(b"acTL", b"\xff" * 8)), None)
    webp = saved(image, "WEBP", lossless=True)[12:]
    canvas = struct.pack("<I", 47)[:3] + struct.pack("<I", 31)[:3]
    one = (b"ANMF", bytes(6) + canvas + b"\x0a\0\0\0" + webp)
    data = riff((b"VP8X", b"\x02\0\0\0" + canvas), (b"ANIM", bytes(6)), *[one] * 3000)
    yield Case("frames-webp", data, RIGHT)
    yield Case(
        "frames-avif",
        saved(image, "AVIF", save_all=True, append_images=[noise(i) for i in range(12)], speed=10, quality=95),
        LOSSY_RIGHT,
    )
    file = io.BytesIO()
    image.save(file, "TIFF", save_all=True, append_images=[Image.new("L", (2, 2))] * 300)
    yield Case("pages-tiff", file.getvalue(), RIGHT)


def _pieces() -> Iterator[Case]:
    """More chunks, segments, blocks and scans than decoders should follow."""
    many = 120_000
    yield Case("pieces-png-chunks", simple_png(chunk(b"abCd") * many), NOT_AN_IMAGE)
    yield Case("pieces-png-chunks-after-the-pixels", simple_png(after=[chunk(b"abCd") * 20_000]), RIGHT)
    image = quarters(200, 160)
    stored = zlib.compress(rows(image), 0)
    one_by_one = b"".join(chunk(b"IDAT", stored[i : i + 1]) for i in range(len(stored)))
    yield Case("pieces-png-pixels", png(header(200, 160), one_by_one, END), Right((200, 160), COLOURS))
    yield Case("pieces-jpeg-segments", jpeg(segment(0xEF) * many), NOT_AN_IMAGE)
    yield Case("pieces-jpeg-fill-bytes", jpeg(b"\xff" * 2 * many), NOT_AN_IMAGE)
    yield Case("pieces-jpeg-junk", jpeg(segment(0xEF) + bytes(2 * many)), NOT_AN_IMAGE)
    block = segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + bytes(60_000))
    yield Case("pieces-jpeg-exif", jpeg(block * 20), NOT_AN_IMAGE)
    progressive = saved(quarters(), "JPEG", quality=95, subsampling=0, progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield Case("scans-jpeg", progressive[:-2] + scan * 2000 + b"\xff\xd9", NOT_AN_IMAGE)
    yield Case("scans-jpeg-a-few-more", progressive[:-2] + scan * 20 + b"\xff\xd9", LOSSY_RIGHT)
    baseline = jpeg()
    scan = baseline[baseline.index(b"\xff\xda") : -2]
    yield Case("scans-jpeg-baseline", baseline[:-2] + scan * 200 + b"\xff\xd9", NOT_AN_IMAGE)
    yield Case("scans-only-in-what-follows", jpeg() + b"\xff\xda" * 5000, LOSSY_RIGHT)
    first = saved(quarters(), "GIF")
    at = first.index(b",", 800) if first[10] & 7 == 7 else first.index(b",", 13)
    yield Case("pieces-gif-comments", first[:at] + b"!\xfe\x01a\0" * many + first[at:], NOT_AN_IMAGE)
    yield Case("comment-gif-of-1-mb", first[:at] + b"!\xfe" + (b"\xff" + b"c" * 255) * 4000 + b"\0" + first[at:], RIGHT)
    # 2.25 million runs of one pixel each, one read() apiece.
    yield Case("pieces-bmp-runs", bmp(1500, 1500, 8, 1, b"\1\7" * 1500 * 1500, bytes(1024)), NOT_AN_IMAGE)


def _directories() -> Iterator[Case]:
    data = bytes(256)
    chain = b""
    at = TIFF_DATA + len(data)
    for index in itertools.count():
        if index == 300:
            break
        chain += struct.pack("<H", 1) + struct.pack("<HHII", 330, LONG, 1, at + 18 * (index + 1)) + longs(0)
    tags = [*grey_tags(), (330, LONG, 1, at)]
    yield Case("directories-in-a-chain", tiff(tags, data + chain), NOT_AN_IMAGE)
    yield Case(
        "directories-side-by-side", tiff([*grey_tags(), (330, LONG, 500, longs(*range(8, 508)))], bytes(600)), None
    )
    numbers = longs(1, 1) * 150_000
    yield Case(
        "directory-of-numbers",
        tiff([*grey_tags(), (700, RATIONAL, 150_000, numbers), (50_000, RATIONAL, 150_000, longs(1, 1))], data),
        NOT_AN_IMAGE,
    )
    offsets, counts = longs(*[TIFF_DATA] * 150_000), longs(*[1] * 150_000)
    tags = [*grey_tags(1, 150_000, offsets=None, counts=None, rows=(278, LONG, 1, 1))]
    tags += [(273, LONG, 150_000, offsets), (279, LONG, 150_000, counts)]
    yield Case("strips-by-the-hundred-thousand", tiff(tags, data), NOT_AN_IMAGE)
    layers = (37724, 7, 3_000_000, bytes(3_000_000))
    yield Case("tiff-with-3-mb-of-layers", tiff([*grey_tags(), layers], bytes(256)), Right((16, 16)))
    yield Case("png-with-a-huge-private-chunk", simple_png(chunk(b"prVt", bytes(3_000_000))), RIGHT)
    yield Case("png-signature-and-3-mb-of-nulls", PNG_SIGNATURE + bytes(3_000_000), NOT_AN_IMAGE)
