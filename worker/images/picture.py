"""Decode a file into pixels that mean the same thing whatever the file was.

Orientation is applied, colours are sRGB, samples are 8 bits. Sizes are checked in the header, before anything is
decompressed.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from shared.errors import AppError, SourceNotAnImage, SourceTooLarge
from worker.images.bounds import EXIF_BYTES, MeteredFile, check_bounds
from worker.images.plain import decode_plain

Pixels = npt.NDArray[np.uint8]

#: Formats a side may come in. Pillow knows many more; each is attack surface that no print shop needs.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")

# Our own limit applies (settings.pixel_limit_mp) and gives our own error; Pillow's would warn first.
Image.MAX_IMAGE_PIXELS = None

#: Deep pictures are scaled in bands of about so many pixels: as a whole their doubles would take 8 bytes a pixel.
_BAND_PIXELS = 2**20

_SRGB = ImageCms.createProfile("sRGB")
#: EXIF orientation -> how to turn the stored picture.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A decoded side.

    Attributes:
        rgb: (H, W, 3) uint8 sRGB, 0-255, orientation already applied.
        alpha: (H, W) uint8, 0 is transparent; None when every pixel is opaque.
        dpi: horizontal and vertical pixels per inch as the file states them, or None.
    """

    rgb: Pixels
    alpha: Pixels | None
    dpi: tuple[float, float] | None = None

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def nbytes(self) -> int:
        return int(self.rgb.nbytes) + (int(self.alpha.nbytes) if self.alpha is not None else 0)


class PictureSize(NamedTuple):
    """Width and height in pixels, as stored: a picture that EXIF turns has them swapped."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_size(data: bytes, *, pixel_limit: int) -> PictureSize:
    """Size of a picture file, from its header.

    Raises:
        SourceNotAnImage: not one of FORMATS.
        SourceTooLarge: more pixels than the limit.
    """
    with _quietly(), _translated(data):
        check_bounds(data, pixel_limit=pixel_limit)
        with Image.open(MeteredFile(data), formats=FORMATS) as image:
            _check_size(image, pixel_limit)
            return PictureSize(*image.size)


def decode(data: bytes, *, pixel_limit: int) -> Picture:
    """Decode one picture file; of an animation, the first frame.

    Args:
        data: the whole file.
        pixel_limit: most pixels (width * height) that are accepted.
    Raises:
        SourceNotAnImage: not one of FORMATS, or damaged.
        SourceTooLarge: more pixels than the limit; found from the header alone.
    """
    with _quietly():
        with _translated(data):
            check_bounds(data, pixel_limit=pixel_limit)
            file = MeteredFile(data)
            image = Image.open(file, formats=FORMATS)
            _check_size(image, pixel_limit)
            file.begin_pixels()
            plain = decode_plain(data, image)
            if plain is None:
                image.load()
                _check_colours(image, data)
        try:
            with image:
                if plain is not None:  # upright, or it would not be plain
                    rgb, alpha = plain
                    return Picture(rgb, _unless_opaque(alpha), _dpi(image, orientation=1))
                dpi = _dpi(image, _orientation(image))
                upright = _orient(image)
                alpha = _alpha(upright)
                rgb = np.array(_to_srgb(upright, image.info.get("icc_profile")))  # a copy: torch wants writable memory
                return Picture(rgb, alpha, dpi)
        # What is left to go wrong once all pixels are there: a palette or profile that does not fit them.
        except (OSError, ValueError, TypeError) as exc:
            raise SourceNotAnImage(f"the source is damaged: {exc}") from exc
        except (MemoryError, OverflowError) as exc:
            raise _out_of_memory(exc) from exc


@contextmanager
def _quietly() -> Iterator[None]:
    """Pillow warns about odd metadata in files that it reads well; the pixels are what counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _translated(data: bytes) -> Iterator[None]:
    """What parsers and decoders raise inside becomes ours."""
    try:
        yield
    except AppError:
        raise
    except UnidentifiedImageError as exc:
        raise SourceNotAnImage(
            f"the source is not a picture in a known format ({', '.join(FORMATS)}); it begins with {data[:12]!r}"
        ) from exc
    except (MemoryError, OverflowError) as exc:
        raise _out_of_memory(exc) from exc
    # Parsers of broken bytes raise whatever they trip over (struct.error, AssertionError, KeyError, ...); each means
    # the same to the caller. Nothing of ours that may fail otherwise runs in here.
    except Exception as exc:
        raise SourceNotAnImage(f"the source is damaged: {exc}") from exc


def _check_colours(image: Image.Image, data: bytes) -> None:
    if image.mode in ("P", "PA") and image.palette is None:
        raise SourceNotAnImage("the source is damaged: it has no palette")
    key = image.info.get("transparency")
    if image.format == "PNG" and data[24] == 16 and isinstance(key, tuple):
        # Of 16-bit colours Pillow keeps the high bytes, but the transparent colour it keeps whole: none would match.
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _out_of_memory(exc: BaseException) -> SourceTooLarge:
    return SourceTooLarge(f"the source needs more memory than there is: {exc}")


def _check_size(image: Image.Image, pixel_limit: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise SourceNotAnImage(f"the source is {width}x{height} pixels")
    if width * height > pixel_limit:
        raise SourceTooLarge(
            f"the source is {width}x{height} = {width * height / 1e6:.1f} million pixels; "
            f"the limit is {pixel_limit / 1e6:g} (PIXEL_LIMIT_MP)"
        )


def _dpi(image: Image.Image, orientation: int) -> tuple[float, float] | None:
    """Resolution as the upright picture has it: a quarter turn swaps its axes."""
    try:
        x, y = (float(part) for part in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if orientation in (5, 6, 7, 8):
        x, y = y, x
    return (x, y) if 1 <= x <= 20_000 and 1 <= y <= 20_000 else None


def _orient(image: Image.Image) -> Image.Image:
    """The picture as EXIF says it is to be shown.

    ImageOps.exif_transpose would also write the block anew, all of it, and copy the picture where there is no turn.
    """
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1, which is upright, where none can be read."""
    if len(image.info.get("exif") or b"") > EXIF_BYTES:
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Broken EXIF blocks raise nearly anything; an unrotated picture is better than none.
        return 1


def _alpha(image: Image.Image) -> Pixels | None:
    """(H, W) uint8 alpha of any mode that can have one, or None when nothing is transparent."""
    if not image.has_transparency_data:
        return None
    key = image.info.get("transparency")
    if image.mode.startswith("I") and isinstance(key, int):  # convert() would leave these opaque
        alpha = np.where(np.asarray(image) == key, np.uint8(0), np.uint8(255))
    else:
        alpha = np.array(image.convert("RGBA").getchannel("A"))
    return _unless_opaque(alpha)


def _unless_opaque(alpha: Pixels | None) -> Pixels | None:
    return None if alpha is None or alpha.min() == 255 else alpha


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Any mode to 8-bit sRGB without alpha; through the embedded profile where there is a usable one."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_grey(image)
    if image.mode in ("1", "P", "PA", "RGBX", "La", "RGBa"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("RGBA", "LA"):  # drop alpha without blending, so that colours under it survive
        image = image.convert("RGB") if image.mode == "RGBA" else image.getchannel("L")
    if profile and image.mode in ("RGB", "L", "CMYK", "LAB"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken or mismatched profile: read the numbers as sRGB
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey and float pictures as 8-bit grey, scaled by the range their type implies.

    16-bit colour comes from Pillow as 8 bits already (the high byte, at most one level from the rounded value).
    """
    values = np.asarray(image)
    if values.dtype == np.uint16:
        table = (np.arange(65536) / 257).round().astype(np.uint8)
        return Image.fromarray(table[values])
    # Floats count to 1 or to 255 and whole numbers to 16 or 31 bits, whichever their largest value fits.
    ranges = (1.0, 255.0) if image.mode == "F" else (65535.0, 2.0**31 - 1)
    top = ranges[0] if np.nanmax(values) <= ranges[0] else ranges[1]
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // values.shape[1])
    for start in range(0, values.shape[0], rows):
        band = values[start : start + rows].astype(np.float64)
        grey[start : start + rows] = np.nan_to_num(band / top * 255.0).clip(0, 255).round()
    return Image.fromarray(grey)
