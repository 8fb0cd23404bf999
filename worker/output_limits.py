"""How large the files of a cell become, known from the picture's size and the options before anything is computed."""

from typing import Protocol

from shared.errors import OutputTooLarge
from shared.options import CANVAS_PIXEL_LIMIT, JobOptions, PrintOptions, parse_canvas
from worker.images.proofs import WEBP_SIDE


class HasSize(Protocol):
    """A picture, or only its size: width and height in pixels."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


def print_pixels(picture: HasSize, options: PrintOptions | None) -> int:
    """Most pixels that the print canvas of a picture can have; 0 when none is asked for."""
    if options is None:
        return 0
    width, height = parse_canvas(options.canvas) or (
        picture.width + 2 * options.margin_px,
        picture.height + 2 * options.margin_px,
    )
    return width * height


def check_output(picture: HasSize, options: JobOptions) -> None:
    """Refuse what the API could not, because only the picture's size decides it; before anything is computed.

    Raises:
        OutputTooLarge: a WebP file or a trimmed print canvas would be larger than it may be.
    """
    if options.format == "webp" and max(picture.width, picture.height) > WEBP_SIDE:
        raise OutputTooLarge(
            f"a WebP file has at most {WEBP_SIDE} pixels a side, the picture {picture.width}x{picture.height}; "
            'use format "png"'
        )
    canvas = print_pixels(picture, options.print)
    if options.print is not None and canvas > max(CANVAS_PIXEL_LIMIT, picture.width * picture.height):
        raise OutputTooLarge(
            f"a picture of {picture.width}x{picture.height} with margin_px {options.print.margin_px} makes a print of "
            f"{canvas / 1e6:.0f} megapixels; the limit is {CANVAS_PIXEL_LIMIT // 10**6}"
        )
