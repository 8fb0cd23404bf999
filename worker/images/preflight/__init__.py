"""What a printer would object to in a cutout, measured before anybody prints it.

Every check is a number, a level and one sentence: what it means on the garment, and what to do about it. Exact on every
pixel: art box, coverage, soft pixels, border, halo, and lines up to 6 px. On a smaller copy, and said so where it is
done: islands (except the size of the small ones) and lines above 6 px.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt

from worker.images.preflight import checks
from worker.images.preflight.planes import as_plane, at_least
from worker.images.preflight.report import CheckJson, Level, PreflightJson, Report, print_size
from worker.images.preflight.strokes import INSIDE, thinnest_gap, thinnest_line
from worker.images.print_spec import AlphaMode

__all__ = ["CheckJson", "Level", "PreflightJson", "Report", "inspect_cutout", "preflight"]


def preflight(
    cutout: npt.NDArray[np.uint8],
    *,
    target_width_in: float | None = None,
    print_dpi: float | None = None,
    print_alpha: AlphaMode = "soft",
    dpi: tuple[float, float] | None = None,
    source_alpha: bool = False,
) -> PreflightJson:
    """`inspect_cutout` as JSON-able data."""
    return inspect_cutout(
        cutout,
        target_width_in=target_width_in,
        print_dpi=print_dpi,
        print_alpha=print_alpha,
        dpi=dpi,
        source_alpha=source_alpha,
    ).to_json()


def inspect_cutout(
    cutout: npt.NDArray[np.uint8],
    *,
    target_width_in: float | None = None,
    print_dpi: float | None = None,
    print_alpha: AlphaMode = "soft",
    dpi: tuple[float, float] | None = None,
    source_alpha: bool = False,
) -> Report:
    """Measure a cutout against what garment printing needs.

    Args:
        cutout: (H, W, 4) uint8 straight-alpha RGBA on its whole canvas; trimmed art always "touches the border".
        target_width_in: printed width of the art (of its outline, not of the canvas), in inches. None assumes that the
            art fills PRINT_AREA_IN; the resolution then never fails, because the size is only our guess.
        print_dpi: pixels of the cutout per printed inch, when its print is already planned; comes before
            target_width_in, and pixels are square then.
        print_alpha: what the print does with soft alpha: as it is, cut hard, or halftone dots for it.
        dpi: pixels per inch that the file states. Only reported, because most files state 72 or 300 whatever they hold;
            but where the two differ, pixels are taken to be that much wider than high.
        source_alpha: the source had transparency of its own, so a full or soft mask may be meant.
    Raises:
        ValueError: not an RGBA picture, or a width or resolution that is not a positive number.
    """
    if cutout.dtype != np.uint8 or cutout.ndim != 3 or cutout.shape[2] != 4 or not cutout.size:
        raise ValueError(f"a cutout is (H, W, 4) uint8, not {cutout.dtype} of shape {cutout.shape}")
    for name, number in (
        ("target_width_in", target_width_in),
        ("print_dpi", print_dpi),
        *(("dpi", value) for value in dpi or ()),
    ):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {number}; it must be a positive number")
    height, width = cutout.shape[:2]
    alpha = as_plane(cv2.extractChannel(cutout, 3))
    left, top, w, h = cv2.boundingRect(alpha)
    if not w:
        return Report(width, height, None, checks.nothing_left())

    box = (slice(top, top + h), slice(left, left + w))
    art = alpha[box]
    inside = at_least(art, INSIDE)
    x, y, outline_w, outline_h = cv2.boundingRect(inside)
    if not outline_w:  # only faint pixels
        x, y, outline_w, outline_h = 0, 0, w, h
    size = print_size(outline_w, outline_h, target_width_in=target_width_in, print_dpi=print_dpi, dpi=dpi)
    found = (
        checks.art_box((left, top, w, h), (left + x, top + y, outline_w, outline_h), width, height, print_alpha),
        checks.coverage(cv2.countNonZero(inside) / (width * height), source_alpha),
        checks.resolution(outline_w, size),
        checks.soft_pixels(art, source_alpha, print_alpha),
        checks.islands(art, size),
        thinnest_line(inside, size),
        thinnest_gap(inside, size),
        checks.halo(cutout[box], art, print_alpha),
        checks.border(alpha),
    )
    return Report(width, height, size, found)
