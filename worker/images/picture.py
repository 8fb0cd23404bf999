"""Decode a file into pixels that mean the same thing whatever the file was.

Orientation is applied, colours are sRGB, samples are 8 bits. Sizes are checked in the header, before anything is
decompressed.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from shared.errors import SourceNotAnImage, SourceTooLarge

Pixels = npt.NDArray[np.uint8]

#: Formats a side may come in. Pillow knows many more; each is attack surface that no print shop needs.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")

# Our own limit applies (settings.pixel_limit_mp) and gives our own error; Pillow's would warn first.
Image.MAX_IMAGE_PIXELS = None

_SRGB = ImageCms.createProfile("sRGB")


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


def decode(data: bytes, *, pixel_limit: int) -> Picture:
    """Decode one picture file; of an animation, the first frame.

    Args:
        data: the whole file.
        pixel_limit: most pixels (width * height) that are accepted.
    Raises:
        SourceNotAnImage: not one of FORMATS, or damaged.
        SourceTooLarge: more pixels than the limit; found from the header alone.
    """
    with warnings.catch_warnings():
        # Pillow warns about odd metadata in files that it reads well; the pixels are what counts.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image, pixel_limit)
                dpi = _dpi(image)
                profile = image.info.get("icc_profile")
                _shorten_colour_key(image)
                image.load()
                upright = _orient(image)
                alpha = _alpha(upright)
                rgb = np.array(_to_srgb(upright, profile))  # a copy: torch wants writable memory
        except (SourceTooLarge, SourceNotAnImage):
            raise
        except UnidentifiedImageError as exc:
            raise SourceNotAnImage(
                f"the source is not a picture in a known format ({', '.join(FORMATS)}); it begins with {data[:12]!r}"
            ) from exc
        # Decoders of damaged files raise many kinds; each means the same to the caller.
        except (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, ArithmeticError) as exc:
            raise SourceNotAnImage(f"the source is damaged: {exc}") from exc
        except (MemoryError, OverflowError) as exc:
            raise SourceTooLarge(f"the source needs more memory than there is: {exc}") from exc
    return Picture(rgb, alpha, dpi)


def _check_size(image: Image.Image, pixel_limit: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise SourceNotAnImage(f"the source is {width}x{height} pixels")
    if width * height > pixel_limit:
        raise SourceTooLarge(
            f"the source is {width}x{height} = {width * height / 1e6:.1f} million pixels; "
            f"the limit is {pixel_limit / 1e6:g} (PIXEL_LIMIT_MP)"
        )


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Resolution as the upright picture has it: a quarter turn swaps its axes."""
    try:
        x, y = (float(part) for part in image.info["dpi"])
        if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            x, y = y, x
    except Exception:  # absent, or a block of metadata too broken to read: of the picture, nothing is lost
        return None
    return (x, y) if 1 <= x <= 20_000 and 1 <= y <= 20_000 else None


def _orient(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Broken EXIF blocks raise nearly anything; an unrotated picture is better than none.
        return image


def _shorten_colour_key(image: Image.Image) -> None:
    """The transparent colour of 16-bit colour as the 8 bits that Pillow makes of the pixels; it keeps the key's 16."""
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # what is still to be decoded, and from which layout of samples
    if isinstance(key, tuple) and tiles and "16" in str(tiles[0][3]):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _alpha(image: Image.Image) -> Pixels | None:
    """(H, W) uint8 alpha of any mode that can have one, or None when nothing is transparent."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # deep grey with one grey marked transparent, which convert() would not look at
        alpha = np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    else:
        alpha = np.array(image.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else alpha


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
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey and float pictures as 8-bit grey, scaled by the range their type implies.

    16-bit colour comes from Pillow as 8 bits already (the high byte, at most one level from the rounded value).
    """
    values = np.asarray(image)
    if values.dtype == np.uint16:  # a table: 64 megapixels of floats would take 256 MB
        table = (np.arange(65536) / 257).round().astype(np.uint8)
        return Image.fromarray(table[values])
    values = np.nan_to_num(values.astype(np.float32))
    # Floats count to 1 or to 255 and whole numbers to 16 or 31 bits, whichever their largest value fits.
    ranges = (1.0, 255.0) if image.mode == "F" else (65535.0, 2.0**31 - 1)
    top = ranges[0] if values.max() <= ranges[0] else ranges[1]
    return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
