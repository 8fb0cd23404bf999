"""The plain background of flat artwork, as a scan or a photo of it has it: one colour, unevenly lit, with grain.

A vector export has one exact colour; a flatbed adds grain and the texture of the paper, a phone a gradient of light,
JPEG a few levels of everything. So the ground is a smooth surface per channel, and what counts as "the ground's
colour" follows from how far the picture's own border strays from that surface.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from worker.images.picture import Pixels

Floats = npt.NDArray[np.float64]

#: Share of the border ring that must lie on the surface for the background to count as flat.
_FLAT_SHARE = 0.95
#: Width of that ring over the shorter side, and how many of its pixels are looked at.
_RING, _SAMPLES = 0.02, 20_000
#: Smallest and largest difference (0-255, largest channel) from the surface that is still ground. JPEG rings by up to
#: this much beside ink on flat colour; beyond the largest the background is a pattern, not a paper.
_LEAST, _MOST = 24.0, 36.0
#: The same for the border, where there is no ink to ring.
_LEAST_AT_BORDER = 12.0
#: Differences counted in standard deviations of the border: of grain, 1 pixel in 16,000 is beyond.
_DEVIATIONS = 4.0
#: Standard deviation of the border (0-255) from which pixels are smoothed before they are compared, and the median's
#: side: an export has less than 1, whatever its JPEG quality.
_GRAINY, _MEDIAN = 1.5, 3
#: Largest difference of light over the picture, 0-255. More is a gradient that belongs to the design.
_UNEVEN = 90.0
#: Rounds of fitting without the outliers of the round before.
_ROUNDS = 5


@dataclass(frozen=True)
class Ground:
    """A flat background.

    Attributes:
        colours: (H, W, 3) uint8, what the background is, or would be, at every pixel.
        pixels: (H, W, 3) uint8, the picture, smoothed where it is grainy.
        tolerance: largest channel difference (0-255) that still is ground.
        grainy: the picture is a scan or a photo rather than an export.
    """

    colours: Pixels
    pixels: Pixels
    tolerance: float
    grainy: bool


def find_ground(rgb: Pixels) -> Ground | None:
    """The flat background of a picture, judged by its border; None when the border is anything else.

    Args:
        rgb: (H, W, 3) uint8.
    """
    height, width = rgb.shape[:2]
    at = _ring(height, width)
    terms = _terms(at[0] / height, at[1] / width)
    pixels, values = rgb, rgb[at].astype(np.float64)
    surface, deviation = _fit(terms, values)
    grainy = deviation > _GRAINY
    if grainy:
        pixels = np.asarray(cv2.medianBlur(rgb, _MEDIAN), np.uint8)
        values = pixels[at].astype(np.float64)
        surface, deviation = _fit(terms, values)
    spread = _DEVIATIONS * deviation
    if spread > _MOST:
        return None
    off = np.abs(values - terms @ surface).max(axis=1)
    if (off <= max(_LEAST_AT_BORDER, spread)).mean() < _FLAT_SHARE:
        return None
    colours = _paint(surface, height, width)
    return None if colours is None else Ground(colours, pixels, max(_LEAST, spread), grainy)


def _ring(height: int, width: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of at most about _SAMPLES pixels of the border."""
    ring = max(1, round(min(height, width) * _RING))
    every = max(1, round((2 * ring * (height + width) / _SAMPLES) ** 0.5))
    rows, columns = np.arange(0, height, every), np.arange(0, width, every)
    at_side = (columns < ring) | (columns >= width - ring)
    at_end = (rows < ring) | (rows >= height - ring)
    y, x = np.nonzero(at_end[:, None] | at_side)
    return rows[y], columns[x]


def _terms(y: Floats, x: Floats) -> Floats:
    """(n, 6) terms of a surface of second order over positions in 0..1: light falls off smoothly."""
    return np.stack((np.ones_like(x), x, y, x * x, x * y, y * y), axis=1)


def _fit(terms: Floats, values: Floats) -> tuple[Floats, float]:
    """Surface (6, 3) through most of the values (n, 3), and their standard deviation around it.

    Starts from the median alone, so that art across the border cannot bend the first surface towards itself.
    """
    surface = np.zeros((terms.shape[1], 3))
    surface[0] = np.median(values, axis=0)
    reach = _UNEVEN / 2
    for _ in range(_ROUNDS):
        off = np.abs(values - terms @ surface).max(axis=1)
        near = off <= reach
        if near.sum() < 4 * terms.shape[1]:  # a tiny picture, or one without any common colour
            return surface, 1.4826 * float(np.median(off))
        surface = np.linalg.lstsq(terms[near], values[near], rcond=None)[0]
        reach = max(2.0, 3 * 1.4826 * float(np.median(np.abs(values - terms @ surface).max(axis=1))))
    return surface, float((values - terms @ surface)[near].std(axis=0).max())


def _paint(surface: Floats, height: int, width: int) -> Pixels | None:
    """The surface as a picture; None when it is so uneven that it is part of the design."""
    rows, columns = min(height, 64), min(width, 64)
    y, x = np.mgrid[0:rows, 0:columns] + 0.5
    small = (_terms(y.ravel() / rows, x.ravel() / columns) @ surface).reshape(rows, columns, 3)
    if np.ptp(small, axis=(0, 1)).max() > _UNEVEN:
        return None
    small = small.clip(0, 255).round().astype(np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
