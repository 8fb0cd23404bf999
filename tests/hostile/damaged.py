"""Files that began as pictures: cut off, with wrong sums, orders, sizes and tables, or with random bytes."""

import random
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.hostile.building import (
    COLOURS,
    END,
    LONG,
    NOT_AN_IMAGE,
    RATIONAL,
    SHORT,
    SLONG,
    TIFF_DATA,
    Case,
    Right,
    Tag,
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
)

#: Places at which files are cut, as a share of their length.
CUTS = (0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)
FLIPS_PER_FORMAT = 10
RIGHT = Right((48, 32), COLOURS)


def cases() -> Iterator[Case]:
    yield from _cut()
    yield from _flipped()
    yield from _png()
    yield from _jpeg()
    yield from _tiff()
    yield from _gif()
    yield from _bmp()
    yield from _webp_and_avif()


def _samples() -> dict[str, bytes]:
    """Pictures whose files are pixels nearly from end to end."""
    image = noise(1, 64, 48)
    return {
        "png": saved(image, "PNG"),
        "png-grey": saved(image.convert("L"), "PNG"),
        "jpeg": saved(image, "JPEG", quality=90),
        "jpeg-progressive": saved(image, "JPEG", quality=90, progressive=True),
        "webp": saved(image, "WEBP", quality=90),
        "webp-lossless": saved(image, "WEBP", lossless=True),
        "tiff": saved(image, "TIFF"),
        "tiff-lzw": saved(image, "TIFF", compression="tiff_lzw"),
        "bmp": saved(image, "BMP"),
        "gif": saved(image, "GIF"),
        "avif": saved(image, "AVIF", quality=90, speed=10),
    }


def _cut() -> Iterator[Case]:
    for name, data in _samples().items():
        for share in CUTS:
            yield Case(f"cut-{name}-at-{share:.0%}", data[: int(len(data) * share)], NOT_AN_IMAGE)


def _flipped() -> Iterator[Case]:
    """Random bytes at random places: anything may come out, as long as it is a picture or a code."""
    for name, data in _samples().items():
        for seed in range(FLIPS_PER_FORMAT):
            rng = random.Random(f"{name}-{seed}")
            changed = bytearray(data)
            reach = len(data) if seed % 2 else min(len(data), 200)  # every other one in the headers
            for _ in range(rng.randint(1, 12)):
                changed[rng.randrange(reach)] = rng.randrange(256)
            yield Case(f"flipped-{name}-{seed}", bytes(changed), None)


def _png() -> Iterator[Case]:
    pixels, palette = idat(rows(quarters())), chunk(b"PLTE", bytes(12))
    good_header = header(48, 32)
    bad = {
        "crc-of-the-header": png(good_header[:-4] + bytes(4), pixels, END),
        "crc-of-the-palette": png(header(48, 32, 8, 3), palette[:-4] + bytes(4), idat(bytes(49 * 32)), END),
        "pixels-before-palette": png(header(48, 32, 8, 3), idat(bytes(49 * 32)), palette, END),
        "no-palette": png(header(48, 32, 8, 3), idat(bytes(49 * 32)), END),
        "no-header": png(pixels, END),
        "no-pixels": png(good_header, END),
        "only-an-end": png(END),
        "header-too-short": png(chunk(b"IHDR", bytes(5)), pixels, END),
        "width-zero": png(header(0, 32), idat(bytes(32)), END),
        "height-zero": png(header(48, 0), idat(b""), END),
        "depth-3": png(header(48, 32, 3), pixels, END),
        "depth-0": png(header(48, 32, 0), pixels, END),
        "depth-16-palette": png(header(48, 32, 16, 3), palette, pixels, END),
        "colour-type-5": png(header(48, 32, 8, 5), pixels, END),
        "colour-type-255": png(header(48, 32, 8, 255), pixels, END),
        "filter-method-9": png(header(48, 32, 8, 2, 0, 9, 0), pixels, END),
        "no-deflate": png(good_header, chunk(b"IDAT", b"not deflated at all" * 9), END),
        "deflate-cut-off": png(good_header, chunk(b"IDAT", zlib.compress(rows(noise(2)))[:1200]), END),
        "empty-pixels": png(good_header, chunk(b"IDAT"), END),
        "chunk-longer-than-the-file": png(good_header, struct.pack(">I", 10**9) + b"IDAT" + bytes(40)),
        "chunk-of-2-gb": png(good_header, struct.pack(">I", 2**31) + b"tEXt" + bytes(40)),
        "chunk-of-4-gb": png(struct.pack(">I", 2**32 - 1) + b"IHDR" + bytes(40)),
        "chunk-name-of-nulls": png(good_header, struct.pack(">I", 4) + bytes(12), pixels, END),
        "signature-with-unix-newlines": simple_png().replace(b"\r\n", b"\n", 1),
    }
    for filter_type in (5, 17, 255):
        bad[f"filter-{filter_type}"] = png(good_header, idat(rows(quarters(), filter_type)), END)
    for name, data in bad.items():
        yield Case(f"png-{name}", data, NOT_AN_IMAGE)
    # Decoders differ in what they forgive; what they make of these is a picture or an error.
    forgiven = {
        "crc-of-the-pixels": png(good_header, pixels[:-4] + bytes(4), END),
        "too-few-rows": png(good_header, idat(rows(quarters(48, 20))), END),
        "no-end": png(good_header, pixels),
        "two-headers": png(good_header, good_header, pixels, END),
        "checksum-missing": png(good_header, chunk(b"IDAT", zlib.compress(rows(quarters()))[:-4]), END),
        "pixels-in-two-places": png(
            good_header, chunk(b"IDAT", zlib.compress(rows(quarters()))[:50]), chunk(b"tEXt", b"a\0b"),
            chunk(b"IDAT", zlib.compress(rows(quarters()))[50:]), END,
        ),
        "interlace-method-2": png(header(48, 32, 8, 2, 0, 0, 2), pixels, END),
        "compression-method-1": png(header(48, 32, 8, 2, 1, 0, 0), pixels, END),
        "transparency-too-short": simple_png(chunk(b"tRNS", b"\1")),
        "palette-too-long": simple_png(chunk(b"PLTE", bytes(3 * 300))),
        "palette-index-outside": png(header(48, 32, 8, 3), palette, idat((b"\0" + b"\xff" * 48) * 32), END),
        "gamma-zero": simple_png(chunk(b"gAMA", bytes(4))),
        "resolution-4-billion": simple_png(chunk(b"pHYs", b"\xff" * 8 + b"\1")),
        "chunks-too-short": simple_png(*(chunk(kind, b"\1") for kind in (b"pHYs", b"cHRM", b"gAMA", b"sRGB", b"tIME"))),
    }  # fmt: skip
    for name, data in forgiven.items():
        yield Case(f"png-{name}", data, None)
    yield Case("png-crc-of-a-comment", simple_png(chunk(b"tEXt", b"Comment\0x", crc=1)), None)
    yield Case("png-data-after-the-end", simple_png() + bytes(5000), RIGHT)
    one_by_one = (chunk(b"IDAT", bytes((byte,))) for byte in zlib.compress(rows(quarters())))
    yield Case("png-pixels-in-chunks-of-one-byte", png(good_header, *one_by_one, END), RIGHT)


def _jpeg() -> Iterator[Case]:
    good = jpeg()
    frame = good.index(b"\xff\xc0")
    frame_end = frame + 2 + int.from_bytes(good[frame + 2 : frame + 4], "big")
    scan = good.index(b"\xff\xda")
    bad = {
        "no-frame": good[:frame] + good[frame_end:],
        "no-scan": good[:scan] + b"\xff\xd9",
        "no-tables": b"\xff\xd8" + good[frame:frame_end] + good[scan:],
        "12-bit": replaced(good, 0xC0, {4: b"\x0c"}),
        "width-zero": replaced(good, 0xC0, {7: b"\0\0"}),
        "height-zero": replaced(good, 0xC0, {5: b"\0\0"}),
        "no-components": replaced(good, 0xC0, {9: b"\0"}),
        "255-components": replaced(good, 0xC0, {9: b"\xff"}),
        "sampling-zero": replaced(good, 0xC0, {11: b"\0"}),
        "sampling-fifteen": replaced(good, 0xC0, {11: b"\xff"}),
        "lossless": replaced(good, 0xC0, {1: b"\xc3"}),
        "hierarchical": replaced(good, 0xC0, {1: b"\xc5"}),
        "scan-of-no-components": replaced(good, 0xDA, {4: b"\0"}),
        "scan-of-a-strange-component": replaced(good, 0xDA, {5: b"\x77"}),
        "segment-of-length-0": good[:2] + b"\xff\xe5\0\0" + good[2:],
        "segment-longer-than-the-file": good[:2] + b"\xff\xe5\xff\xff" + good[2:],
        "two-markers-only": b"\xff\xd8\xff\xd9",
        "quantization-of-precision-15": replaced(good, 0xDB, {4: b"\xf0"}),
    }
    # Some of these libjpeg forgives; which ones is its business.
    known = {"no-frame", "no-scan", "12-bit", "width-zero", "height-zero", "two-markers-only", "255-components"}
    for name, data in bad.items():
        yield Case(f"jpeg-{name}", data, NOT_AN_IMAGE if name in known else None)
    for name, data in {
        "arithmetic-without-tables": replaced(good, 0xC0, {1: b"\xc9"}),
        "two-frames": good[:frame_end] + good[frame:],
        "huffman-of-ones": replaced(good, 0xC4, {5: b"\xff" * 16}),
        "restarts-that-never-come": good[:scan] + segment(0xDD, b"\0\1") + good[scan:],
        "pixels-of-ff": good[: scan + 14] + b"\xff\x00" * 200 + b"\xff\xd9",
        "adobe-transform-200": good[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\xc8") + good[2:],
        "jfif-too-short": good[:2] + segment(0xE0, b"JFIF") + good[2:],
        "broken-photoshop-block": jpeg(segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0" + b"\xff" * 4)),
        "broken-mpf": jpeg(segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + b"\xff" * 10 + b"\1\xb0\7\0" * 50)),
    }.items():  # fmt: skip
        yield Case(f"jpeg-{name}", data, None)
    yield Case("jpeg-junk-before-a-marker", good[:2] + b"\xff" * 300 + good[3:], Right((48, 32), COLOURS, 14))


def _tiff() -> Iterator[Case]:
    data = bytes(range(256))
    good = {"fine": tiff(grey_tags(), data)}

    def with_tags(*tags: Tag, **changes: Tag | None) -> bytes:
        return tiff([*grey_tags(**changes), *tags], data)

    at = len(good["fine"]) - (2 + 12 * 9 + 4)
    odd = {
        "next-directory-is-itself": good["fine"][:-4] + longs(at),
        "next-directory-outside": good["fine"][:-4] + longs(2**32 - 1),
        "sub-directory-is-itself": with_tags((330, LONG, 1, at), (34665, LONG, 1, at)),
        "sub-directory-outside": with_tags((330, LONG, 1, 2**32 - 2), (34665, LONG, 1, 2**32 - 2)),
        "type-0": with_tags((700, 0, 1, 1)),
        "type-255": with_tags((700, 255, 2**31, 1)),
        "count-of-4-billion": with_tags((33432, 2, 2**32 - 1, 8)),
        "numbers-of-4-billion": with_tags((33550, RATIONAL, 2**32 - 1, 8)),
        "rational-by-zero": with_tags((282, RATIONAL, 1, longs(1, 0)), (283, RATIONAL, 1, longs(0, 0))),
        "orientation-9": with_tags((274, SHORT, 1, 9)),
        "orientation-as-text": with_tags((274, 2, 4, b"abc\0x")),
        "no-bits": with_tags(bits=None),
        "byte-count-of-4-billion": with_tags(counts=(279, LONG, 1, 2**32 - 1)),
    }
    for name, file in (good | odd).items():
        yield Case(f"tiff-{name}", file, Right((16, 16)))
    bad = {
        "no-width": with_tags(width=None),
        "width-zero": with_tags(width=(256, LONG, 1, 0)),
        "width-negative": with_tags(width=(256, SLONG, 1, -16)),
        "width-as-text": with_tags(width=(256, 2, 5, b"wide\0")),
        "compression-60000": with_tags(compression=(259, SHORT, 1, 60_000)),
        "bits-zero": with_tags(bits=(258, SHORT, 1, 0)),
        "bits-63": with_tags(bits=(258, SHORT, 1, 63)),
        "samples-60000": with_tags(samples=(277, SHORT, 1, 60_000)),
        "photometric-60000": with_tags(photometric=(262, SHORT, 1, 60_000)),
        "lzw-garbage": with_tags(compression=(259, SHORT, 1, 5)),
        "deflate-garbage": with_tags(compression=(259, SHORT, 1, 8)),
        "jpeg-garbage": with_tags(compression=(259, SHORT, 1, 7)),
        "old-jpeg": with_tags(compression=(259, SHORT, 1, 6)),
        "group4-garbage": with_tags(compression=(259, SHORT, 1, 4), bits=(258, SHORT, 1, 1)),
        "lerc-garbage": with_tags(compression=(259, SHORT, 1, 34887)),
        "no-offsets": with_tags(offsets=None),
        "offset-outside": with_tags(offsets=(273, LONG, 1, 2**31)),
        "directory-outside": b"II*\0\xff\xff\xff\xff" + data,
        "directory-at-zero": b"II*\0\0\0\0\0" + data,
        "directory-of-65535": b"MM\0*\0\0\0\x08\xff\xff" + data,
        "header-only": b"II*\0",
        "big-header-only": b"II+\0\x08\0\0\0",
        "big-with-2-to-the-64-entries": b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + b"\xff" * 8 + bytes(4000),
        "rows-zero": with_tags(compression=(259, SHORT, 1, 8), rows=(278, LONG, 1, 0)),
        "tiles-of-nothing": with_tags(
            (322, LONG, 1, 0), (323, LONG, 1, 0), (324, LONG, 1, TIFF_DATA), (325, LONG, 1, 256),
            offsets=None, counts=None, rows=None,
        ),
        "tiles-negative": with_tags(
            (322, SLONG, 1, -16), (323, SLONG, 1, -16), (324, LONG, 1, TIFF_DATA), (325, LONG, 1, 256),
            offsets=None, counts=None, rows=None, compression=(259, SHORT, 1, 8),
        ),
    }  # fmt: skip
    for name, file in bad.items():
        yield Case(f"tiff-{name}", file, None if name in ("tiles-negative", "old-jpeg") else NOT_AN_IMAGE)


def _gif() -> Iterator[Case]:
    frame = gif_frame(0, 0, 3, 3)
    yield Case("gif-of-one-colour", gif((3, 3), frame), Right((3, 3), ((250, 10, 20),) * 4))
    bad = {
        "no-frame": gif((9, 9)),
        "only-comments": gif((9, 9), *[b"!\xfe\x03abc\0"] * 20),
        "header-only": b"GIF89a",
        "screen-and-frame-of-nothing": gif((0, 0), gif_frame(0, 0, 0, 0)),
        "code-size-255": gif((9, 9), gif_frame(0, 0, 9, 9, 255)),
        "no-codes": gif((9, 9), gif_frame(0, 0, 9, 9, 2, b"")),
        "codes-never-defined": gif((9, 9), gif_frame(0, 0, 9, 9, 2, b"\x3c" + b"\xff" * 30)),
    }
    for name, data in bad.items():
        yield Case(f"gif-{name}", data, NOT_AN_IMAGE)
    odd = {
        "frame-outside-its-screen": gif((4, 4), gif_frame(2, 2, 9, 9)),
        "frame-larger-than-its-screen": gif((1, 1), gif_frame(0, 0, 3, 3)),
        "no-palette": gif((3, 3), frame, palette=None),
        "code-size-zero": gif((3, 3), gif_frame(0, 0, 3, 3, 0)),
        "code-size-12": gif((3, 3), gif_frame(0, 0, 3, 3, 12)),
        "control-block-cut-off": gif((3, 3), b"!\xf9\x01\xff\0", frame),
        "transparent-index-outside": gif((3, 3), b"!\xf9\x04\x01\0\0\xff\0", frame),
        "too-many-codes": gif((3, 3), gif_frame(0, 0, 19, 19)).replace(b"\x13\0\x13\0", b"\3\0\3\0"),
        "strange-block": gif((3, 3), b"\x99" * 50, frame),
    }
    for name, data in odd.items():
        yield Case(f"gif-{name}", data, None)


def _bmp() -> Iterator[Case]:
    pixels = bytes(48 * 32 * 3)
    bad = {
        "header-only": b"BM" + bytes(12),
        "header-size-zero": bmp(48, 32, 24, 0, pixels, header_size=0),
        "header-size-4-gb": bmp(48, 32, 24, 0, pixels, header_size=2**32 - 1),
        "header-size-41": bmp(48, 32, 24, 0, pixels, header_size=41),
        "depth-0": bmp(48, 32, 0, 0, pixels),
        "depth-64": bmp(48, 32, 64, 0, pixels),
        "compression-99": bmp(48, 32, 24, 99, pixels),
        "width-zero": bmp(0, 32, 24, 0, pixels),
        "height-zero": bmp(48, 0, 24, 0, pixels),
        "width-negative": bmp(-48, 32, 24, 0, pixels),
        "pixels-missing": bmp(48, 32, 24, 0, pixels[:100]),
        "offset-outside": bmp(48, 32, 24, 0, pixels, offset=2**31),
        "rle-that-never-ends": bmp(48, 32, 8, 1, b"\x01\x02" * 20, bytes(1024)),
        "rle-of-jumps": bmp(48, 32, 8, 1, b"\0\2\xff\xff" * 30, bytes(1024)),
        "rle-cut-off": bmp(48, 32, 8, 1, b"\0\xff", bytes(1024)),
    }
    for name, data in bad.items():
        yield Case(f"bmp-{name}", data, None if name in ("rle-of-jumps", "width-negative") else NOT_AN_IMAGE)
    yield Case("bmp-palette-of-4-billion", bmp(48, 32, 8, 0, bytes(48 * 32), bytes(1024), colours=2**32 - 1), None)
    yield Case("bmp-no-planes", bmp(48, 32, 24, 0, pixels, planes=0), None)


def _webp_and_avif() -> Iterator[Case]:
    webp = saved(quarters(), "WEBP", lossless=True)
    canvas = struct.pack("<BBBB", 0x10, 0, 0, 0) + struct.pack("<I", 47)[:3] + struct.pack("<I", 31)[:3]
    payload = webp[20:]
    bad = {
        "no-chunks": riff(),
        "garbage-lossy": riff((b"VP8 ", b"\x30\x01\x00\x9d\x01\x2a" + bytes(40))),
        "garbage-lossless": riff((b"VP8L", b"\x2f" + b"\xff" * 40)),
        "canvas-without-a-picture": riff((b"VP8X", canvas)),
        "animation-without-frames": riff((b"VP8X", b"\x02" + canvas[1:]), (b"ANIM", bytes(6))),
        "frame-outside-the-canvas": riff(
            (b"VP8X", b"\x02" + canvas[1:]), (b"ANIM", bytes(6)), (b"ANMF", b"\xff\xff\xff" * 2 + bytes(10) + webp[12:])
        ),
        "strange-chunks-only": riff((b"JUNK", bytes(100))),
    }
    for name, data in bad.items():
        yield Case(f"webp-{name}", data, NOT_AN_IMAGE)
    yield Case("webp-size-of-4-gb", riff((b"VP8L", payload), size=2**32 - 10), None)
    yield Case("webp-size-zero", riff((b"VP8L", payload), size=0), None)
    yield Case(
        "webp-canvas-of-another-size",
        riff((b"VP8X", canvas), (b"VP8L", saved(noise(3, 9, 9), "WEBP", lossless=True)[20:])),
        None,
    )

    avif = saved(Image.new("RGB", (48, 32), (200, 100, 50)), "AVIF", speed=10)
    meta, spatial, places = avif.index(b"meta"), avif.index(b"ispe"), avif.index(b"iloc")
    changes = {
        "no-meta": avif[:meta] + b"free" + avif[meta + 4 :],
        "no-locations": avif[:places] + b"free" + avif[places + 4 :],
        "size-zero": avif[: spatial + 8] + bytes(8) + avif[spatial + 16 :],
        "box-of-4-gb": avif[: meta - 4] + b"\xff" * 4 + avif[meta:],
        "box-of-no-size": avif[: meta - 4] + bytes(4) + avif[meta:],
        "box-of-2-to-the-64": avif[: meta - 4] + b"\0\0\0\1meta" + b"\xff" * 8 + avif[meta + 4 :],
        "pixels-of-nulls": avif[: avif.index(b"mdat") + 4] + bytes(len(avif) - avif.index(b"mdat") - 4),
        "locations-of-ff": avif[: places + 8] + b"\xff" * 24 + avif[places + 32 :],
        "brand-only": avif[: int.from_bytes(avif[:4], "big")],
    }
    for name, data in changes.items():
        yield Case(f"avif-{name}", data, None if name == "box-of-no-size" else NOT_AN_IMAGE)
