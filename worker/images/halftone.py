"""Turn soft alpha into ink or no ink: choke, specks and pinholes, and the halftone screen.

Everything here works on coverage, (h, w) uint8 0-255, and knows nothing about colours or the canvas. Outside the array
nothing is printed, so an outline that touches the border is an outline there too.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt

Coverage = npt.NDArray[np.uint8]

#: Added to a whole radius so that the digital disc shrinks outlines by that radius on average over all directions.
#: Found on antialiased discs of radius 12 to 41 px: errors of at most 0.17 px for 1 to 10 px; with 0 up to 0.24, with
#: 0.5 up to 0.37.
_DISC_ROUNDING = 0.25
#: A change of alpha by this much within one screen cell is an edge, not a fade: the screen could not show it anyway,
#: and dots along it make ragged outlines. 0.6 not 0.9: lettering inside its own 30 % glow stays sharp as well.
_EDGE_CONTRAST = 0.6
#: Rows screened at once. The float work of a band stays in the processor's cache: 4500x5400 of fade takes 30 to 40 ms
#: with 64 rows, the same with 8 to 128, 55 to 70 with 512, and 80 to 120 in one piece, which needs 290 MB besides.
_BAND_ROWS = 64


def at_least(alpha: Coverage, level: int) -> Coverage:
    """255 where alpha is `level` (1..255) or more, else 0."""
    return np.asarray(cv2.threshold(alpha, level - 1, 255, cv2.THRESH_BINARY)[1], np.uint8)


def choke(alpha: Coverage, radius_px: float) -> Coverage:
    """Pull outlines inwards by a distance, in pixels; fractions count.

    The lowest alpha within the radius (a grey erosion by a disc). It commutes with thresholding, so one function serves
    soft, hard and halftone art and the underbase. A fraction is a blend of the two whole radii around it, which moves
    antialiased outlines by that fraction (worst measured error 0.3 px). Not a distance transform: that takes 231 ms for
    4500x5400 and 97 MB of floats; this takes 4 ms for 1 px, 81 ms for 10 px, and no floats.
    """
    whole = int(radius_px)
    part = radius_px - whole
    near = _erode(alpha, whole)
    if not part:
        return near
    return np.asarray(cv2.addWeighted(near, 1 - part, _erode(alpha, whole + 1), part, 0), np.uint8)


def small_regions(mask: Coverage, min_area_px: float, *, holes: bool = False) -> tuple[Coverage | None, int, int]:
    """Regions of a 0/255 mask with fewer pixels than a minimum.

    Args:
        mask: (h, w) uint8, 0 or 255.
        min_area_px: regions with fewer pixels are found.
        holes: look at enclosed regions of 0 instead of islands of 255. Islands join over corners, holes do not.
    Returns:
        (h, w) uint8 with 255 on those regions, or None when there are none; their number; their pixels together.
    """
    if min_area_px <= 1:
        return None, 0, 0
    regions = 255 - mask if holes else mask
    # A region that holds a block of `side` pixels squared is large enough. Such blocks lie whole in the opened mask and
    # each has a pixel on a grid of that pitch, so only thin parts need counting: for 4500x5400 60 to 100 ms instead
    # of the 150 to 240 of connectedComponentsWithStats and a look-up per pixel.
    side = math.ceil(math.sqrt(min_area_px))
    number, labels = cv2.connectedComponents(regions, connectivity=4 if holes else 8, ltype=cv2.CV_32S)
    block = np.ones((side, side), np.uint8)
    # Anchors in opposite corners: OpenCV's own opening shifts by a pixel where the side is even.
    opened = cv2.erode(regions, block, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    opened = cv2.dilate(opened, block, anchor=(side - 1, side - 1), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    large = np.zeros(number, np.bool_)
    large[0] = True  # label 0 is the rest
    large[labels[::side, ::side][opened[::side, ::side] > 0]] = True
    if holes:  # what reaches the border is outside, not a hole
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            large[edge] = True
    thin = cv2.subtract(regions, opened) > 0
    owner = labels[thin]
    area = np.bincount(owner, minlength=number)
    small = ~large & (area < min_area_px)
    if not small.any():
        return None, 0, 0
    found = np.zeros_like(mask)
    found[thin] = np.where(small, 255, 0).astype(np.uint8)[owner]
    return found, int(small.sum()), int(area[small].sum())


def box_of_large(mask: Coverage, min_area_px: float) -> tuple[tuple[int, int, int, int] | None, int, int]:
    """The box around all islands that are not specks; specks count when there is nothing else.

    Args:
        mask: (h, w) uint8, 0 or 255.
        min_area_px: islands with fewer pixels are specks.
    Returns:
        (left, top, width, height) or None for an empty mask; number and pixels of the specks wholly outside of it.
    """
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return None, 0, 0
    box = (left, top, width, height)
    if min_area_px <= 1 or _large_at_all_sides(mask, box, math.ceil(min_area_px)):
        return box, 0, 0
    area, stats = _regions(mask)
    area, x0, y0 = area[1:], stats[1:, cv2.CC_STAT_LEFT], stats[1:, cv2.CC_STAT_TOP]
    x1, y1 = x0 + stats[1:, cv2.CC_STAT_WIDTH], y0 + stats[1:, cv2.CC_STAT_HEIGHT]
    large = area >= min_area_px
    if not large.any():
        return box, 0, 0
    left, top, right, bottom = (
        int(x0[large].min()),
        int(y0[large].min()),
        int(x1[large].max()),
        int(y1[large].max()),
    )
    outside = (x1 <= left) | (y1 <= top) | (x0 >= right) | (y0 >= bottom)
    return (left, top, right - left, bottom - top), int(outside.sum()), int(area[outside].sum())


def sharpen_edges(alpha: Coverage, window_px: float, threshold: float) -> Coverage:
    """Alpha whose steep edges are steps, while fades stay as they are.

    Args:
        alpha: (h, w) uint8.
        window_px: an edge is a change by `_EDGE_CONTRAST` within this distance: one screen cell.
        threshold: 0..1, where between the low and the high side the step falls.
    Returns:
        (h, w) uint8; on an edge each pixel has the lowest or the highest alpha of its surroundings.
    """
    side = 2 * max(1, round(window_px / 2)) + 1
    kernel = np.ones((side, side), np.uint8)
    low = cv2.erode(alpha, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    high = cv2.dilate(alpha, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    edge = at_least(np.asarray(cv2.subtract(high, low), np.uint8), round(_EDGE_CONTRAST * 255))
    step = cv2.addWeighted(low, 1 - threshold, high, threshold, 0)
    step = np.maximum(step, 1)  # alpha 0 never becomes ink
    stepped = cv2.copyTo(low, cv2.compare(alpha, step, cv2.CMP_LT), high)
    return np.asarray(cv2.copyTo(stepped, edge, alpha.copy()), np.uint8)


def screen(alpha: Coverage, cell_px: float, angle_deg: float, min_dot_px: float) -> Coverage:
    """Round dots of full ink whose area is the alpha: an amplitude-modulated halftone.

    Args:
        alpha: (h, w) uint8; 255 stays solid and 0 stays empty.
        cell_px: distance of the dots, in pixels: dpi / lpi.
        angle_deg: rotation of the screen.
        min_dot_px: diameter below which a dot is left out, and the gap between dots is closed.
    Returns:
        (h, w) uint8, 0 or 255.
    Source: a clustered dot as in Ulichney 1987, "Digital Halftoning", chapter 5. The radius for a coverage is the exact
    area of a disc in its unit cell, cut by the cell's sides above 78.5 %, so tones need no correction curve.
    """
    limit = _squared_radii(min_dot_px / cell_px)
    height, width = alpha.shape
    angle = math.radians(angle_deg)
    step_x, step_y = math.cos(angle) / cell_px, math.sin(angle) / cell_px
    x, y = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None]
    # Reduced to one cell before the sum: single precision is then exact enough at any canvas size.
    ux, vx = ((x * step % 1).astype(np.float32) for step in (step_x, -step_y))
    uy, vy = ((y * step % 1).astype(np.float32) for step in (step_y, step_x))
    out = at_least(alpha, 255)
    for start in range(0, height, _BAND_ROWS):
        band = slice(start, start + _BAND_ROWS)
        fade = cv2.inRange(alpha[band], 1, 254)
        left, top, columns, rows = cv2.boundingRect(fade)
        if not columns:
            continue
        part = (slice(start + top, start + top + rows), slice(left, left + columns))
        u, v = uy[part[0]] + ux[part[1]], vy[part[0]] + vx[part[1]]
        u -= np.rint(u)
        v -= np.rint(v)
        u *= u
        v *= v
        u += v  # squared distance to the nearest dot's centre, in cells
        out[part] = cv2.compare(u, cv2.LUT(alpha[part], limit), cv2.CMP_LT)
    return out


def _squared_radii(min_dot: float) -> npt.NDArray[np.float32]:
    """For each alpha the squared radius of its dot; all lengths in cells: (256,), -1 for no ink, 1 for solid."""
    radius = np.linspace(0, math.sqrt(0.5), 4001)
    far = np.maximum(radius, 0.5)
    # The disc less the four caps that lie outside of the unit cell (none up to radius 0.5).
    area = np.pi * radius**2 - 4 * (far**2 * np.arccos(0.5 / far) - 0.5 * np.sqrt(far**2 - 0.25))
    coverage = np.arange(256) / 255
    limit = np.interp(coverage, area, radius) ** 2
    least = math.pi / 4 * min_dot**2
    limit[coverage < least] = -1
    limit[1 - coverage < least] = 1
    limit[0], limit[255] = -1, 1
    return limit.astype(np.float32)


def _erode(alpha: Coverage, radius: int) -> Coverage:
    if not radius:
        return alpha
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x * x + y * y <= (radius + _DISC_ROUNDING) ** 2).astype(np.uint8)
    return np.asarray(cv2.erode(alpha, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0), np.uint8)


def _large_at_all_sides(mask: Coverage, box: tuple[int, int, int, int], least: int) -> bool:
    """Whether an island of at least `least` pixels is known to touch each side of the box, so no speck decides it.

    Strips of `least` rows or columns are enough: that many pixels of an island are found within as many steps. 4 ms
    instead of the 150 of labelling a 4500x5400 mask.
    """
    left, top, width, height = box
    if 4 * least > min(width, height):
        return False  # strips would be no less work
    art = mask[top : top + height, left : left + width]
    for view in (art, art[::-1], art.T, art.T[::-1]):
        area, stats = _regions(np.ascontiguousarray(view[:least]))
        if not (area[1:] >= least)[stats[1:, cv2.CC_STAT_TOP] == 0].any():
            return False
    return True


def _regions(mask: Coverage) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Areas (n,) and statistics (n, 5) of islands; number 0 is what is not in the mask."""
    stats = np.asarray(cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=cv2.CV_32S)[2], np.int32)
    return stats[:, cv2.CC_STAT_AREA], stats
