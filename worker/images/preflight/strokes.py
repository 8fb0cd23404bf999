"""The thinnest lines and the narrowest gaps of a cutout.

Thickness is the largest disc that fits: Hildebrand & Rueegsegger 1997, "A new method for the model-independent
assessment of thickness in three-dimensional images"; how we count it is in `_thinnest`. Minimum line 1 pt and gap 2 pt:
DTF Michigan, "Artwork guidelines" (https://dtfmichigan.com/artwork-guidelines).
"""

import math
from functools import cache

import cv2
import numpy as np

from worker.images.preflight.planes import Plane, as_plane, at_least, grown, halved, parts, pooled, shrunk
from worker.images.preflight.report import POINT_MM, Check, Details, Level, PrintSize

#: Thinnest line that prints and holds, 1 pt, and narrowest gap that stays open, 2 pt; in mm.
LINE_MM, GAP_MM = POINT_MM, 2 * POINT_MM
#: Alpha from which a pixel is inside the outline of the art.
INSIDE = 128
#: Share of the art that may be thinner than LINE_MM before it is more than a detail.
THIN_FAIL = 0.05
#: Widest line that is measured, in px: 4 mm at 300 dpi.
_WIDEST_PX = 48
#: Parts of a pooled copy that are looked at in full size before all of it is.
_CLOSE_LOOKS = 8


def thinnest_line(inside: Plane, size: PrintSize) -> Check:
    """value: [px, mm, pt] of the thinnest line of the art, see `_thinnest`; None when no line is thinner than 48 px."""
    minimum = size.px(LINE_MM)
    px = _thinnest(inside, minimum, _WIDEST_PX)
    if px is None:
        message = f"No line is thinner than {size.mm(_WIDEST_PX):.1f} mm; all will print."
        return Check("thinnest_line", "ok", None, message, {"minimum_px": minimum})
    width = _width_words(px, size)
    details: Details = {"minimum_px": minimum, "thin_share": 0.0}
    if px + 0.5 >= minimum:  # pixels measure to half a pixel
        message = f"The thinnest lines are about {width}, above the {LINE_MM:.2f} mm (1 pt) that prints reliably."
        return Check("thinnest_line", "ok", _px_mm_pt(px, size), message, details)
    details["thin_share"] = share = _thin_share(inside, minimum)
    level: Level = "fail" if share > THIN_FAIL else "warn"
    message = f"The thinnest lines are about {width} at {size.words}, below the {LINE_MM:.2f} mm (1 pt) that holds on "
    message += "fabric; thicken them or print larger."
    return Check("thinnest_line", level, _px_mm_pt(px, size), message, details)


def thinnest_gap(inside: Plane, size: PrintSize) -> Check:
    """value: [px, mm, pt] of the narrowest gap if it is below GAP_MM, else None."""
    minimum = size.px(GAP_MM)
    limit = min(minimum - 0.5, 2 * _WIDEST_PX)  # bounds the margin where somebody prints a poster on a stamp
    margin = 3 * math.ceil(max(limit, 0)) + 2
    outside = cv2.copyMakeBorder(cv2.bitwise_not(inside), *(margin,) * 4, cv2.BORDER_CONSTANT, value=(255.0,))
    px = _thinnest(as_plane(outside), minimum, limit)
    details: Details = {"minimum_px": minimum}
    if px is None or px + 0.5 >= minimum:
        message = f"No gap is narrower than {GAP_MM:.1f} mm (2 pt) at {size.words}; all will stay open."
        return Check("thinnest_gap", "ok", None, message, details)
    message = f"The narrowest gaps in the art are about {_width_words(px, size)} at {size.words}; below {GAP_MM:.1f} "
    message += "mm (2 pt) ink fills them, so widen them or print larger."
    return Check("thinnest_gap", "warn", _px_mm_pt(px, size), message, details)


def _thinnest(shape: Plane, minimum: float, limit: float) -> float | None:
    """Width in px of the thinnest line of a 0/255 shape, or None when none is thinner than `limit` px.

    A place is thinner than k when no disc of diameter k that fits into the shape is centred within k of it; the
    distance forgives corners and the stair-steps of slanted edges. A line is such places hanging together over at least
    3 k, so specks and the tips of spikes are none. The thinnest line is one step below the first k that finds a line.

    Steps are 1 px up to 6 px, then 2 up to 12, 4 up to 24, 8 up to 48, on copies reduced as much. Where `minimum`, the
    width that matters, is 8 px or more, the first copy already is a reduced one: a quarter of the time, steps of 2 px.
    """
    shape, reduction = _reduced(shape, minimum)
    first, previous = 2, 1.0
    while previous < limit and min(shape.shape) > 0:
        level = at_least(shape, INSIDE)
        for disc in range(first, 7):
            if _has_part(_thin(level, disc), 3 * disc):
                return previous
            previous = float(disc * reduction)
            if previous >= limit:
                return None
        shape, reduction, first = halved(shape), reduction * 2, 4
    return None


def _thin_share(shape: Plane, minimum: float) -> float:
    """Share of a 0/255 shape that is thinner than `minimum` px."""
    level, reduction = _reduced(shape, minimum)
    level = at_least(level, INSIDE)
    area = cv2.countNonZero(level) if level.size else 0
    return cv2.countNonZero(_thin(level, max(2, round(minimum / reduction)))) / area if area else 0.0


def _thin(shape: Plane, disc: int) -> Plane:
    """The part of a 0/255 shape that is farther than `disc` from the centres where a disc of that diameter fits."""
    return as_plane(cv2.subtract(shape, grown(shrunk(shape, _disc(disc)), disc)))


@cache
def _disc(diameter: int) -> Plane:
    """A kernel in the shape of a disc; always the same array, for reading."""
    offset = np.arange(diameter) - (diameter - 1) / 2
    return as_plane((np.hypot(offset[:, None], offset) <= diameter / 2).astype(np.uint8))


def _has_part(shape: Plane, length: int) -> bool:
    """Is a connected part of a 0/255 plane at least so many px wide or high?"""
    x, y, w, h = cv2.boundingRect(shape)
    if max(w, h) < length or cv2.countNonZero(shape) < length:
        return False
    shape = shape[y : y + h, x : x + w]
    coarse, block = pooled(shape)
    sides, boxes = parts(coarse)
    if block == 1:
        return bool(sides.max() >= length)
    # Pooling only joins: no part is longer than its pooled part, and inside the pooled part's box it is whole.
    likely = np.argsort(-sides)[: int((sides * block >= length).sum())]
    if likely.size > _CLOSE_LOOKS:
        likely, rest = likely[:_CLOSE_LOOKS], True
    else:
        rest = False
    for left, top, width, height in boxes[likely] * block:
        if parts(shape[top : top + height, left : left + width])[0].max() >= length:
            return True
    return rest and bool(parts(shape)[0].max() >= length)


def _reduced(shape: Plane, width: float) -> tuple[Plane, int]:
    """A copy on which `width` px of the shape are less than 8 px, and how many px of the shape one of its px is."""
    reduction = 1
    while width / reduction >= 8:
        shape, reduction = halved(shape), reduction * 2
    return shape, reduction


def _px_mm_pt(px: float, size: PrintSize) -> list[float]:
    return [px, size.mm(px), size.mm(px) / LINE_MM]


def _width_words(px: float, size: PrintSize) -> str:
    return f"{px:.0f} px = {size.mm(px):.2f} mm ({size.mm(px) / LINE_MM:.1f} pt)"
