"""The fast decoders against Pillow: the same pixels, or no answer."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from worker.images import decode
from worker.images.plain import decode_plain

Array = np.ndarray[Any, Any]


def art(seed: int, width: int, height: int, channels: int) -> Image.Image:
    """A picture with flat areas, gradients and, in RGBA, every kind of alpha."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (1 + height // 9, 1 + width // 9, channels), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling(int(rng.integers(0, 4))))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def fast(data: bytes) -> Array | None:
    """The fast path's pixels with alpha, if it takes the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        except (OSError, ValueError):
            return None
        found = decode_plain(data, image)
    if found is None:
        return None
    rgb, alpha = found
    return rgb if alpha is None else np.dstack((rgb, alpha))


def same(pixels: Array, data: bytes) -> bool:
    expected = by_pillow(data)
    return expected is not None and np.array_equal(pixels, expected)


def by_pillow(data: bytes) -> Array | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.asarray(Image.open(io.BytesIO(data)))
        except (OSError, SyntaxError, ValueError):
            return None


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(compressed: bytes, width: int = 13, height: int = 17) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


_FILES = st.one_of(
    st.builds(
        lambda seed, width, height, options: saved(art(seed, width, height, 3), "JPEG", **options),
        st.integers(0, 999),
        st.integers(1, 70),
        st.integers(1, 70),
        st.fixed_dictionaries(
            {"quality": st.integers(3, 100), "subsampling": st.integers(0, 2), "progressive": st.booleans()}
        ),
    ),
    st.builds(
        lambda seed, width, height, channels, level: saved(
            art(seed, width, height, channels), "PNG", compress_level=level
        ),
        st.integers(0, 999),
        st.integers(1, 70),
        st.integers(1, 70),
        st.sampled_from([3, 4]),
        st.integers(0, 9),
    ),
)


@given(_FILES)
@settings(deadline=None, max_examples=150)
def test_plain_files_are_taken_and_are_the_same_as_pillow_s(data: bytes) -> None:
    pixels = fast(data)
    assert pixels is not None
    assert same(pixels, data)


@given(_FILES, st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_file_is_the_same_as_pillow_s_or_left_to_it(data: bytes, choice: st.DataObject) -> None:
    damaged = bytearray(data)
    for place in choice.draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        damaged[place] = choice.draw(st.integers(0, 255))
    del damaged[choice.draw(st.one_of(st.just(len(data)), st.integers(0, len(data)))) :]
    damaged += choice.draw(st.sampled_from([b"", b"\xff\xd9"]))
    pixels = fast(bytes(damaged))
    if pixels is not None:
        assert same(pixels, bytes(damaged))


@given(st.integers(1, 680), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_a_png_with_right_checksums_and_broken_pixels_is_left_to_pillow(place: int, bit: int) -> None:
    """Short of rows, cut off, or with a flipped bit: checksums of chunks say nothing about these."""
    raw = np.random.default_rng(5).integers(0, 255, (17, 40), dtype=np.uint8)
    raw[:, 0] = 0
    whole = zlib.compress(raw.tobytes())
    flipped = bytearray(whole)
    flipped[place % len(whole)] ^= 1 << bit
    for compressed in (zlib.compress(raw.tobytes()[:-place]), whole[:-place], bytes(flipped)):
        data = png_of(compressed)
        pixels = fast(data)
        assert pixels is None or same(pixels, data)
    assert fast(png_of(whole)) is not None


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND", b"pHYs"])
def test_a_png_with_a_wrong_checksum_is_left_to_pillow(kind: bytes) -> None:
    data = saved(art(1, 9, 7, 3), "PNG", dpi=(300, 300))
    assert fast(data) is not None
    start = data.index(kind)
    end = start + 4 + int.from_bytes(data[start - 4 : start], "big")
    wrong = bytes([data[end] ^ 1])
    assert fast(data[:end] + wrong + data[end + 1 :]) is None


GOOD_PNG = saved(art(1, 9, 7, 3), "PNG", dpi=(300, 300))


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize(
    "odd",
    [
        *(chunk(kind, b"") for kind in (b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"tIME", b"tEXt")),
        *(chunk(kind, bytes(60)) for kind in (b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"tIME")),
        chunk(b"pHYs", bytes(9)),  # there is one
        chunk(b"IHDR", GOOD_PNG[16:29]),
    ],
    ids=lambda odd: f"{odd[4:8].decode()}-{len(odd) - 12}",
)
def test_a_png_with_an_odd_chunk_is_left_to_pillow(odd: bytes, place: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Given a harmless chunk of a wrong length, or a second one, which Pillow may refuse and libpng complains of."""
    at = GOOD_PNG.index(b"IDAT" if place == "before the pixels" else b"IEND") - 4
    data = GOOD_PNG[:at] + odd + GOOD_PNG[at:]
    assert fast(data) is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "common",
    [
        chunk(b"sRGB", b"\0") + chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"tEXt", b"Software\0x") + chunk(b"tEXt", b"Title\0x"),
        chunk(b"bKGD", bytes(6)) + chunk(b"tIME", bytes((7, 234, 1, 2, 3, 4, 5))),
        chunk(b"sBIT", b"\x08\x08\x08"),
    ],
    ids=lambda common: common[4:8].decode(),
)
def test_a_png_with_the_chunks_that_programs_write_is_plain(common: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    at = GOOD_PNG.index(b"pHYs") - 4
    data = GOOD_PNG[:at] + common + GOOD_PNG[at:]
    pixels = fast(data)
    assert pixels is not None
    assert same(pixels, data)
    assert capfd.readouterr().err == ""


def _png_info(**texts: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, value in texts.items():
        info.add_itxt(name.replace("_", ":").replace("com:adobe:xmp", "com.adobe.xmp"), value)
    return info


def _oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(art(1, 9, 7, 3), "JPEG", exif=_oriented()), id="a rotated JPEG"),
        pytest.param(saved(art(1, 9, 7, 3), "PNG", exif=_oriented()), id="a rotated PNG"),
        pytest.param(
            saved(art(1, 9, 7, 3), "PNG", pnginfo=_png_info(XML_com_adobe_xmp='<x tiff:Orientation="6"/>')),
            id="a PNG with XMP",
        ),
        pytest.param(saved(art(1, 9, 7, 3), "JPEG", icc_profile=b"profile"), id="a JPEG with a profile"),
        pytest.param(saved(art(1, 9, 7, 3), "PNG", icc_profile=b"profile"), id="a PNG with a profile"),
        pytest.param(saved(art(1, 9, 7, 3).convert("CMYK"), "JPEG"), id="a CMYK JPEG"),
        pytest.param(saved(art(1, 9, 7, 3).convert("L"), "JPEG"), id="a grey JPEG"),
        pytest.param(saved(art(1, 9, 7, 3).convert("P"), "PNG"), id="a palette PNG"),
        pytest.param(saved(art(1, 9, 7, 3).convert("I;16"), "PNG"), id="a 16-bit PNG"),
        pytest.param(saved(art(1, 9, 7, 3), "PNG", transparency=(1, 2, 3)), id="a PNG with a transparent colour"),
        pytest.param(
            saved(art(1, 9, 7, 3), "PNG", save_all=True, append_images=[art(2, 9, 7, 3)]), id="an animated PNG"
        ),
        pytest.param(saved(art(1, 9, 7, 3), "WEBP", lossless=True), id="another format"),
    ],
)
def test_what_is_not_plain_is_left_to_pillow(data: bytes) -> None:
    assert decode_plain(data, Image.open(io.BytesIO(data))) is None
    assert decode(data, pixel_limit=1000).rgb.shape[2] == 3


def test_a_header_with_16_bits_a_channel_is_left_to_pillow() -> None:
    """Pillow calls it RGB as well, and takes the upper byte."""
    rows = np.random.default_rng(1).integers(0, 255, (4, 1 + 5 * 6), dtype=np.uint8)
    rows[:, 0] = 0
    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    idat = zlib.compress(rows.tobytes())
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert fast(data) is None


@pytest.mark.parametrize("rows", [16, 18, 5000])
def test_a_png_with_more_or_fewer_rows_than_it_says_is_left_to_pillow(rows: int) -> None:
    """OpenCV would inflate all there is, which may be a thousand times the file."""
    raw = np.zeros((rows, 40), np.uint8)
    assert fast(png_of(zlib.compress(raw.tobytes()))) is None
    assert fast(png_of(zlib.compress(raw[:1].repeat(17, axis=0).tobytes()))) is not None


@pytest.mark.parametrize("level", [0, 1, 9])
def test_pixels_that_are_inflated_in_many_pieces_are_taken(level: int) -> None:
    image = Image.new("RGB", (2100, 1700), (9, 99, 200))
    image.paste(art(3, 900, 900, 3), (300, 300))
    data = saved(image, "PNG", compress_level=level)
    pixels = fast(data)
    assert pixels is not None
    assert same(pixels, data)
