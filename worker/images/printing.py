"""A finished cutout becomes a print file: trimmed, scaled, placed on the canvas, and with alpha that a printer can use.

Semi-transparent pixels are the commonest defect in direct-to-garment and direct-to-film prints: the white underbase
shows through them as speckle, and haze prints as a box. So besides "soft" there are two alpha modes without any:
"hard" cuts at a threshold, "halftone" turns fades into dots of full ink (worker/images/halftone.py).

Order: box of the art -> crop -> resize with premultiplied alpha -> alpha mode -> underbase -> canvas. Alpha is treated
after the resize, because choke, specks and dots are lengths on the printed canvas.

Memory beside the cutout, result included: 310 to 450 MB for a 4500x5400 canvas, 530 MB when it is shrunk from
5400x6480, noise included; it grows with the pixels of both. Cutouts are bounded by the caller's pixel limit,
canvases by the options. Time for 4500x5400 on one core of a busy machine: soft 0.1 s, hard 0.3 to 0.5 s, halftone
0.3 to 0.6 s; shrunk from 5400x6480 0.6 to 0.7 s; noise at most 1.2 s (benchmarks/printing.py).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from worker.images.halftone import Coverage, at_least, box_of_large, choke, screen, sharpen_edges, small_regions
from worker.images.picture import Pixels
from worker.images.print_spec import PrintSpec

Box = tuple[int, int, int, int]

#: White under halftone dots is choked by at most this many pixels. 2 px would leave every dot below about 25 % (35 lpi
#: at 300 dpi) without white, and on dark cloth fades would end there.
_DOT_CHOKE_PX = 1.0
#: Alpha (of 255) up to which enlarged art is empty. The cubic kernel's negative lobes, at most -1/9, multiply to faint
#: positive spots beyond the corners of the art.
_CUBIC_HAZE = 255 / 81
_NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True, eq=False)
class PrintResult:
    """A print file's pixels and what was done to get there.

    Attributes:
        image: (h, w, 4) uint8 straight-alpha RGBA of the whole canvas; colour under alpha 0 is 0.
        underbase: (h, w) uint8, 255 is full white ink; None unless asked for. Never more than the image's alpha.
        scale: linear factor from cutout to canvas pixels.
        upscaled: the factor is above 1, so pixels were invented.
        limited: filling the canvas needed more than 1 and was not allowed; the art is smaller than asked for.
        box: (left, top, width, height) of what is visible on the canvas; None when nothing is.
        effective_dpi: cutout pixels per printed inch.
        removed_islands: specks that are not printed.
        removed_pixels: pixels of those specks: on the canvas, or in the cutout for specks outside of the art's box.
    """

    image: Pixels
    underbase: Coverage | None
    scale: float
    upscaled: bool
    limited: bool
    box: Box | None
    effective_dpi: float
    removed_islands: int
    removed_pixels: int


@dataclass(frozen=True)
class _Place:
    """Where a piece of the cutout goes; all in pixels."""

    canvas: tuple[int, int]
    left: int
    top: int
    width: int
    height: int
    scale: float
    limited: bool


def render_print(cutout: Pixels, spec: PrintSpec) -> PrintResult:
    """Place a cutout on a canvas for printing.

    Args:
        cutout: (H, W, 4) uint8 straight-alpha RGBA with clean colours under soft edges, as `cut_out` gives it.
        spec: canvas, placement and alpha mode.
    Returns:
        The canvas and what was done. Art without any printable pixel gives an empty canvas.
    Raises:
        ValueError: the cutout has another type or shape, or no pixels.
    """
    if cutout.dtype != np.uint8 or cutout.ndim != 3 or cutout.shape[2] != 4 or not cutout.size:
        raise ValueError(f"the cutout is {cutout.dtype} {cutout.shape}; it must be uint8 (H, W, 4) with pixels")
    height, width = cutout.shape[:2]
    source, outside, outside_px = _source_box(cutout, spec)
    place = _place(source[2:] if source else (width, height), spec)
    image = np.zeros((place.canvas[1], place.canvas[0], 4), np.uint8)
    white = np.zeros(image.shape[:2], np.uint8) if spec.underbase else None
    box, islands, pixels = None, 0, 0
    if source:
        left, top, width, height = source
        art = _resize(cutout[top : top + height, left : left + width], (place.width, place.height))
        ink, plate, islands, pixels = _ink(_alpha(art), spec)
        _colour_gaps(art, ink)
        cv2.insertChannel(ink, art, 3)
        here = (slice(place.top, place.top + place.height), slice(place.left, place.left + place.width))
        image[here] = cv2.copyTo(art, ink)
        if white is not None and plate is not None:
            white[here] = plate
        left, top, width, height = cv2.boundingRect(ink)
        box = (place.left + left, place.top + top, width, height) if width else None
    return PrintResult(
        image=image,
        underbase=white,
        scale=place.scale,
        upscaled=place.scale > 1,
        limited=place.limited,
        box=box,
        effective_dpi=spec.dpi / place.scale,
        removed_islands=islands + outside,
        removed_pixels=pixels + outside_px,
    )


def _source_box(cutout: Pixels, spec: PrintSpec) -> tuple[Box | None, int, int]:
    """The part of the cutout that is printed, or None; number and pixels of the specks left outside of it."""
    mask = at_least(_alpha(cutout), spec.level)
    box, _, _ = box_of_large(mask, 0)
    if box is None or not spec.trim:
        return box and (0, 0, mask.shape[1], mask.shape[0]), 0, 0
    if spec.alpha == "soft":
        return box, 0, 0
    # A speck that will not be printed must not move or shrink the art. Its size on the canvas depends on the scale:
    # taken here is the one that the art would have together with it.
    scale = _place(box[2:], spec).scale
    return box_of_large(mask, spec.area_px(spec.min_island_mm) / scale**2)


def _place(size: tuple[int, int], spec: PrintSpec) -> _Place:
    """Scale and position for art of (width, height) pixels."""
    width, height = size
    margin = spec.margin_px
    if spec.canvas is None:
        return _Place((width + 2 * margin, height + 2 * margin), margin, margin, width, height, 1.0, False)
    room_x, room_y = (side - 2 * margin for side in spec.canvas)
    fraction = spec.scale if isinstance(spec.scale, (int, float)) else 1.0
    wanted = min(fraction * room_x / width, fraction * room_y / height)
    scale = min(wanted, 1.0) if spec.scale == "none" or not spec.allow_upscale else wanted
    new_width, new_height = (
        min(room, max(1, round(side * scale))) for side, room in ((width, room_x), (height, room_y))
    )
    free_x, free_y = room_x - new_width, room_y - new_height
    left = 0 if "left" in spec.position else free_x if "right" in spec.position else free_x // 2
    top = 0 if "top" in spec.position else free_y if "bottom" in spec.position else free_y // 2
    limited = spec.scale != "none" and wanted > scale
    return _Place(spec.canvas, margin + left, margin + top, new_width, new_height, scale, limited)


def _resize(art: Pixels, size: tuple[int, int]) -> Pixels:
    """Straight RGBA at (width, height), always a copy; colours are weighted by alpha, so none bleed in or out.

    Cubic, not Lanczos, where it enlarges: Lanczos has a second positive lobe, which leaves a line of faint alpha two
    pixels outside of every outline.
    """
    if size == (art.shape[1], art.shape[0]):
        return art.copy()
    shrinks = size[0] < art.shape[1] or size[1] < art.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    alpha = _alpha(art)
    out = np.empty((size[1], size[0], 4), np.uint8)
    # Floats: 8-bit premultiplied colours lose most of their bits where alpha is low. One channel at a time in the same
    # arrays: a fourth of the memory, and 440 ms instead of up to 760 from 5400x6480 to 4500x5400.
    product = alpha.astype(np.float32)
    weight = cv2.resize(product, size, interpolation=method)
    straight = cv2.resize(alpha, size, interpolation=cv2.INTER_NEAREST)
    plane, small = alpha.copy(), np.empty_like(weight)
    for channel in range(3):
        cv2.extractChannel(art, channel, dst=plane)
        cv2.multiply(plane, alpha, dst=product, dtype=cv2.CV_32F)
        cv2.resize(product, size, dst=small, interpolation=method)
        cv2.divide(small, weight, dst=straight, dtype=cv2.CV_8U)
        cv2.insertChannel(straight, out, channel)
    if method == cv2.INTER_CUBIC:
        cv2.threshold(weight, _CUBIC_HAZE, 0, cv2.THRESH_TOZERO, dst=weight)
    np.rint(weight, out=weight).clip(0, 255, out=weight)
    cv2.insertChannel(weight.astype(np.uint8), out, 3)
    return out


def _ink(alpha: Coverage, spec: PrintSpec) -> tuple[Coverage, Coverage | None, int, int]:
    """Alpha on the canvas after the alpha mode, the white plate, and number and pixels of the dropped specks."""
    islands, pixels = 0, 0
    solid = None
    if spec.alpha == "hard":
        # Pinholes before the choke, which would widen them past the minimum; specks after it, which makes new ones.
        alpha = _fill_holes(alpha, at_least(alpha, spec.level), spec)
        ink = at_least(choke(alpha, spec.choke), spec.level)
        ink, islands, pixels = _drop_specks(ink, ink, spec)
    elif spec.alpha == "halftone":
        alpha = choke(alpha, spec.choke)
        # Specks of the art, not of the screen: its dots are smaller than the smallest speck.
        alpha, islands, pixels = _drop_specks(alpha, at_least(alpha, spec.level), spec)
        alpha = sharpen_edges(alpha, spec.cell_px, spec.threshold)
        alpha = _fill_holes(alpha, at_least(alpha, 255), spec)
        ink = screen(alpha, spec.cell_px, spec.halftone_angle_deg, spec.min_dot_px)
        solid = at_least(alpha, 255)
    else:
        ink = choke(alpha, spec.choke)
    if not spec.underbase:
        return ink, None, islands, pixels
    white = choke(ink, spec.underbase_choke_px)
    if solid is not None and spec.underbase_choke_px > _DOT_CHOKE_PX:
        white = np.asarray(cv2.copyTo(white, solid, choke(ink, _DOT_CHOKE_PX)), np.uint8)
    return ink, white, islands, pixels


def _drop_specks(alpha: Coverage, mask: Coverage, spec: PrintSpec) -> tuple[Coverage, int, int]:
    """Alpha without the small islands of a mask; their number and pixels."""
    specks, count, pixels = small_regions(mask, spec.area_px(spec.min_island_mm))
    return (alpha if specks is None else np.asarray(cv2.subtract(alpha, specks), np.uint8)), count, pixels


def _fill_holes(alpha: Coverage, mask: Coverage, spec: PrintSpec) -> Coverage:
    """Alpha with the small holes of a mask filled."""
    holes, _, _ = small_regions(mask, spec.area_px(spec.min_hole_mm), holes=True)
    return alpha if holes is None else np.maximum(alpha, holes)


def _colour_gaps(art: Pixels, ink: Coverage) -> None:
    """Give ink without a colour of its own (filled pinholes: alpha 0 in the art) the nearest art pixel's, in place."""
    bare = 255 - at_least(_alpha(art), 1)
    gaps = cv2.bitwise_and(bare, ink)
    if not cv2.hasNonZero(gaps):
        return
    rows, columns = np.nonzero(gaps)
    height, width = ink.shape
    while rows.size:  # from the rim inwards, one pixel at a time
        filled = np.zeros(rows.size, np.bool_)
        for dy, dx in _NEIGHBOURS:
            near_y, near_x = (rows + dy).clip(0, height - 1), (columns + dx).clip(0, width - 1)
            found = ~filled & (bare[near_y, near_x] == 0)
            art[rows[found], columns[found], :3] = art[near_y[found], near_x[found], :3]
            filled |= found
        bare[rows[filled], columns[filled]] = 0
        rows, columns = rows[~filled], columns[~filled]


def _alpha(art: Pixels) -> Coverage:
    return np.asarray(cv2.extractChannel(art, 3), np.uint8)
