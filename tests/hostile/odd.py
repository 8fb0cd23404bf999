"""Files that are unusual but right: each has one picture that must come out."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms, ImageOps

from tests.hostile.building import (
    COLOURS,
    END,
    LONG,
    LOSSY,
    SHORT,
    TIFF_DATA,
    Case,
    Right,
    bmp,
    chunk,
    grey_tags,
    header,
    idat,
    png,
    quarters,
    rows,
    saved,
    tiff,
)

SIZE = (48, 32)
RIGHT = Right(SIZE, COLOURS)
LOSSY_RIGHT = Right(SIZE, COLOURS, LOSSY)
GREYS = ((10, 10, 10), (90, 90, 90), (170, 170, 170), (250, 250, 250))
CLEAR = ((*COLOURS[0], 255), (*COLOURS[1], 255), (*COLOURS[2], 0), (*COLOURS[3], 128))
TWO = ((0, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 0))


def cases() -> Iterator[Case]:
    yield from _formats()
    yield from _sizes()
    yield from _depths()
    yield from _palettes()
    yield from _inks()
    yield from _tiffs()
    yield from _bitmaps()


def _formats() -> Iterator[Case]:
    image = quarters()
    yield Case("png", saved(image, "PNG"), RIGHT)
    yield Case("jpeg", saved(image, "JPEG", quality=95), LOSSY_RIGHT)
    yield Case("jpeg-progressive", saved(image, "JPEG", quality=95, progressive=True), LOSSY_RIGHT)
    yield Case("jpeg-grey", saved(quarters(colours=GREYS).convert("L"), "JPEG", quality=95), Right(SIZE, GREYS, LOSSY))
    yield Case("jpeg-restarts", saved(image, "JPEG", quality=95, restart_marker_blocks=1), LOSSY_RIGHT)
    yield Case("webp", saved(image, "WEBP", quality=95), LOSSY_RIGHT)
    yield Case("webp-lossless", saved(image, "WEBP", lossless=True), RIGHT)
    yield Case("gif", saved(image, "GIF"), RIGHT)
    yield Case("bmp", saved(image, "BMP"), RIGHT)
    yield Case("avif", saved(image, "AVIF", quality=95, speed=10), LOSSY_RIGHT)
    for method in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "zstd", "lzma"):
        yield Case(f"tiff-{method}", saved(image, "TIFF", compression=method), RIGHT)
    yield Case("tiff-jpeg", saved(image, "TIFF", compression="jpeg", quality=95), LOSSY_RIGHT)
    yield Case("mpo", saved(image, "MPO", save_all=True, append_images=[image], quality=95), LOSSY_RIGHT)
    clear = quarters(colours=CLEAR)
    yield Case("png-alpha", saved(clear, "PNG"), Right(SIZE, CLEAR))
    yield Case("webp-alpha", saved(clear, "WEBP", lossless=True, exact=True), Right(SIZE, CLEAR))
    yield Case("tiff-alpha", saved(clear, "TIFF"), Right(SIZE, CLEAR))
    yield Case("avif-alpha", saved(clear, "AVIF", quality=95, speed=10), Right(SIZE))
    yield Case("png-grey-alpha", saved(clear.convert("LA"), "PNG"), Right(SIZE))


def _sizes() -> Iterator[Case]:
    for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"):
        for size in ((1, 1), (1, 20_000), (20_000, 1), (3, 2), (16_384, 2)):
            if form == "WEBP" and max(size) > 16_383:
                continue  # the format ends there
            colour = (200, 100, 50)
            image = Image.new("RGB", size, colour)
            options = {"speed": 10} if form == "AVIF" else {}
            right = Right(size, (colour,) * 4, LOSSY)
            yield Case(f"{size[0]}x{size[1]}-{form.lower()}", saved(image, form, **options), right)


def _interlaced(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    """Adam7: seven passes, each a small picture of its own (PNG specification, 8.2)."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in passes]
    return b"".join(rows(Image.fromarray(np.ascontiguousarray(part))) for part in parts if part.size)


def _depths() -> Iterator[Case]:
    image = np.asarray(quarters())
    for depth in (8, 16):
        deep = image if depth == 8 else (image.astype(">u2") * 257).view(np.uint8)
        flat = deep.reshape(32, -1)
        raw = np.insert(flat, 0, 0, axis=1).tobytes()
        yield Case(f"png-rgb-{depth}", png(header(*SIZE, depth), idat(raw), END), RIGHT)
    yield Case("png-interlaced", png(header(*SIZE, 8, 2, 0, 0, 1), idat(_interlaced(image)), END), RIGHT)
    clear = np.asarray(quarters(colours=CLEAR))
    yield Case(
        "png-interlaced-alpha", png(header(*SIZE, 8, 6, 0, 0, 1), idat(_interlaced(clear)), END), Right(SIZE, CLEAR)
    )
    raw = np.insert((clear.astype(">u2") * 257).view(np.uint8).reshape(32, -1), 0, 0, axis=1).tobytes()
    yield Case("png-rgba-16", png(header(*SIZE, 16, 6), idat(raw), END), Right(SIZE, CLEAR))
    greys = np.asarray(quarters(colours=GREYS))[..., 0]
    raw = np.insert((greys.astype(">u2") * 257).view(np.uint8).reshape(32, -1), 0, 0, axis=1).tobytes()
    yield Case("png-grey-16", png(header(*SIZE, 16, 0), idat(raw), END), Right(SIZE, GREYS))
    key = chunk(b"tRNS", struct.pack(">H", 90 * 257))
    clear_greys = tuple((*grey, 0 if grey[0] == 90 else 255) for grey in GREYS)
    yield Case(
        "png-grey-16-with-a-clear-grey", png(header(*SIZE, 16, 0), key, idat(raw), END), Right(SIZE, clear_greys)
    )
    raw = np.insert((image.astype(">u2") * 257).view(np.uint8).reshape(32, -1), 0, 0, axis=1).tobytes()
    key = chunk(b"tRNS", struct.pack(">3H", *(value * 257 for value in COLOURS[1])))
    keyed = tuple((*colour, 0 if colour == COLOURS[1] else 255) for colour in COLOURS)
    yield Case("png-rgb-16-with-a-clear-colour", png(header(*SIZE, 16, 2), key, idat(raw), END), Right(SIZE, keyed))
    key = chunk(b"tRNS", struct.pack(">3H", *COLOURS[1]))
    yield Case(
        "png-rgb-8-with-a-clear-colour", png(header(*SIZE), key, idat(rows(quarters())), END), Right(SIZE, keyed)
    )
    for depth in (1, 2, 4):
        checks = np.asarray(quarters(colours=TWO))[..., 0] > 0
        bits = np.repeat(checks, depth, axis=1)
        raw = np.insert(np.packbits(bits, axis=1), 0, 0, axis=1).tobytes()
        yield Case(f"png-grey-{depth}", png(header(*SIZE, depth, 0), idat(raw), END), Right(SIZE, TWO))


def _palettes() -> Iterator[Case]:
    index = np.asarray(quarters(colours=((0,) * 3, (1,) * 3, (2,) * 3, (3,) * 3)))[..., 0]
    palette = chunk(b"PLTE", bytes(value for colour in COLOURS for value in colour))
    for depth in (2, 4, 8):
        bits = np.unpackbits(index[..., None], axis=2)[..., -depth:].reshape(32, -1)
        raw = np.insert(np.packbits(bits, axis=1), 0, 0, axis=1).tobytes()
        yield Case(f"png-palette-{depth}", png(header(*SIZE, depth, 3), palette, idat(raw), END), RIGHT)
        clear = chunk(b"tRNS", bytes((255, 255, 0, 128)))
        data = png(header(*SIZE, depth, 3), palette, clear, idat(raw), END)
        yield Case(f"png-palette-{depth}-with-alpha", data, Right(SIZE, CLEAR))
    raw = np.insert(index, 0, 0, axis=1).tobytes()
    data = png(header(*SIZE, 8, 3), palette, chunk(b"tRNS", b"\x00"), idat(raw), END)
    yield Case(
        "png-palette-with-one-clear", data, Right(SIZE, tuple((*c, 0 if c == COLOURS[0] else 255) for c in COLOURS))
    )
    one = Image.fromarray(index, "L").convert("P")
    one.putpalette([value for colour in COLOURS for value in colour])
    keyed = tuple((*colour, 0 if colour == COLOURS[3] else 255) for colour in COLOURS)
    yield Case("gif-with-a-clear-colour", saved(one, "GIF", transparency=3), Right(SIZE, keyed))
    yield Case("gif-interlaced", saved(one, "GIF", interlace=True), RIGHT)
    yield Case("gif-not-interlaced", saved(one, "GIF", interlace=False), RIGHT)
    yield Case("tiff-palette", saved(one, "TIFF"), RIGHT)
    yield Case("bmp-palette", saved(one, "BMP"), RIGHT)


def _inks() -> Iterator[Case]:
    """CMYK and YCCK, as Photoshop writes them: inverted, with an Adobe marker."""
    inks = tuple((255 - r, 255 - g, 255 - b, 0) for r, g, b in COLOURS)
    cmyk = quarters(colours=inks)
    cmyk = Image.frombytes("CMYK", cmyk.size, cmyk.tobytes())
    yield Case("jpeg-cmyk", saved(cmyk, "JPEG", quality=95, subsampling=0), LOSSY_RIGHT)
    yield Case("tiff-cmyk", saved(cmyk, "TIFF"), RIGHT)
    # The same file says that its inks are YCCK once the Adobe marker's last byte is 2.
    luma = np.asarray(ImageOps.invert(quarters()).convert("YCbCr"))
    packed = np.concatenate([255 - luma, np.zeros((*luma.shape[:2], 1), np.uint8)], axis=2)
    data = bytearray(saved(Image.frombytes("CMYK", SIZE, packed.tobytes()), "JPEG", quality=95, subsampling=0))
    at = data.index(b"Adobe")
    data[at + 11] = 2
    yield Case("jpeg-ycck", bytes(data), Right(SIZE, COLOURS, 24))
    lab = ImageCms.profileToProfile(
        quarters(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    yield Case("tiff-lab", saved(lab, "TIFF"), Right(SIZE))


def _tiffs() -> Iterator[Case]:
    greys = np.asarray(quarters(colours=GREYS))[..., 0]
    right = Right(SIZE, GREYS)
    yield Case("tiff-grey-16", saved(Image.fromarray(greys.astype(np.uint16) * 257), "TIFF"), right)
    yield Case("tiff-grey-32", saved(Image.fromarray(greys.astype(np.int32) * 257), "TIFF"), right)
    yield Case("tiff-float", saved(Image.fromarray(greys.astype(np.float32) / 255), "TIFF"), right)
    yield Case("tiff-float-to-255", saved(Image.fromarray(greys.astype(np.float32)), "TIFF"), right)
    strange = greys.astype(np.float32) / 255
    strange[0], strange[1], strange[2] = np.nan, np.inf, -np.inf
    yield Case("tiff-float-with-nan", saved(Image.fromarray(strange), "TIFF"), Right(SIZE))
    yield Case("tiff-float-all-nan", saved(Image.fromarray(np.full((32, 48), np.nan, np.float32)), "TIFF"), Right(SIZE))
    yield Case("tiff-1-bit", saved(quarters(colours=TWO).convert("1"), "TIFF", compression="group4"), Right(SIZE, TWO))
    yield Case("tiff-big", saved(quarters(), "TIFF", big_tiff=True), RIGHT)
    one = zlib.compress(greys.tobytes())
    tags = grey_tags(*SIZE, compression=(259, SHORT, 1, 8), counts=(279, LONG, 1, len(one)))
    yield Case("tiff-big-endian-grey", saved(quarters(colours=GREYS).convert("L"), "TIFF"), right)
    yield Case("tiff-deflate-made-by-hand", tiff(tags, one), right)
    padded = np.zeros((64, 64), np.uint8)
    padded[:32, :48] = greys
    tile = zlib.compress(padded.tobytes())
    tags = grey_tags(*SIZE, compression=(259, SHORT, 1, 8), offsets=None, rows=None, counts=None)
    tags += [(322, LONG, 1, 64), (323, LONG, 1, 64), (324, LONG, 1, TIFF_DATA), (325, LONG, 1, len(tile))]
    yield Case("tiff-tile-larger-than-the-picture", tiff(tags, tile), right)
    pages = [quarters()] + [Image.new("RGB", SIZE)] * 3
    yield Case("tiff-pages", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), RIGHT)


def _bitmaps() -> Iterator[Case]:
    pixels = np.asarray(quarters())[..., ::-1]
    yield Case("bmp-top-down", bmp(48, -32, 24, 0, pixels.tobytes()), RIGHT)
    yield Case("bmp-bottom-up", bmp(48, 32, 24, 0, pixels[::-1].tobytes()), RIGHT)
    yield Case("bmp-32", saved(quarters(colours=CLEAR), "BMP"), Right(SIZE))
    red, green, blue = (np.asarray(quarters())[..., channel].astype(np.uint16) for channel in range(3))
    high = ((red >> 3) << 10 | (green >> 3) << 5 | blue >> 3).astype("<u2")
    yield Case("bmp-555", bmp(48, -32, 16, 0, high.tobytes()), Right(SIZE, COLOURS, 8))
    palette = b"".join(bytes((b, g, r, 0)) for r, g, b in COLOURS)
    runs = b"".join(bytes((24, left, 24, right, 0, 0)) for left, right in [(2, 3)] * 16 + [(0, 1)] * 16) + b"\0\1"
    yield Case("bmp-rle8", bmp(48, 32, 8, 1, runs, palette), RIGHT)
