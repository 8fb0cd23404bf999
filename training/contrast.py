"""Which pictures have a right answer: what is printed must be visible, everywhere along its contour.

White art on a white shirt, or a glow that changes no pixel, cannot be found by any method: such pictures would teach
and measure guessing. The rules hold for training, validation and test alike; only runs that go further see fainter ink.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from training.backgrounds import Bytes, Floats, Rng

#: Smallest visible difference (largest of the three channels, 0..1) between a design's contour and its ground.
MIN_CONTRAST = 0.12
#: The same for ink of half alpha, as if it were full.
MIN_SOFT_CONTRAST = 0.28
#: In place of MIN_CONTRAST in the faint pictures of runs that go further: what is clear to see becomes easy. Of the
#: validation pictures, those with thin lines near to their ground's colour were lost whole.
FAINT_CONTRAST = 0.07
#: A design is soft when more than this share of it is half-covered; others have such pixels at their edges only.
SOFT_SHARE = 0.15
#: Soft ink that changes the picture by less than the first is removed (alpha 0); from the second on it stays whole.
INVISIBLE, VISIBLE = 0.04, 0.07


class Legibility(NamedTuple):
    """How much of a design cannot be told from its ground; all shares 0..1."""

    #: Of the contour's pixels.
    contour: float
    #: Of the contour inside the worst window of an eighth of the picture.
    window: float
    #: Of the opaque pixels.
    inside: float
    #: Of the half-covered pixels of a design that has many: soft ink near its ground's colour could be any alpha.
    soft: float = 0.0

    @property
    def is_fair(self) -> bool:
        """Whether a method could know the answer."""
        return self.contour <= 0.03 and self.window <= 0.30 and self.inside <= 0.015 and self.soft <= 0.08


def difference(canvas: Floats, ground: Floats) -> Floats:
    """(H, W) how much the design changes each pixel of the picture, largest channel, 0..1."""
    change = cv2.absdiff(np.ascontiguousarray(canvas[..., :3]), ground * canvas[..., 3:])
    red, green, blue = cv2.split(change)  # max(axis=2) costs ten times as much: three values a step
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.float32)


def legibility(canvas: Floats, ground: Floats, least: float = MIN_CONTRAST) -> Legibility:
    """Measure a premultiplied (H, W, 4) design against the (H, W, 3) ground under it.

    Args:
        least: smallest visible difference, 0..1.
    """
    alpha = canvas[..., 3]
    change = difference(canvas, ground)
    half = (alpha > 0.15) & (alpha < 0.85)
    soft = 0.0
    if half.sum() > SOFT_SHARE * (alpha > 0.15).sum():
        soft = float((change[half] < MIN_SOFT_CONTRAST * alpha[half]).mean())
    opaque = (alpha > 0.5).astype(np.uint8)
    count = int(opaque.sum())
    if not count:
        return Legibility(0.0, 0.0, 0.0, soft)
    # Where ink is thin (soft alpha just above one half), less of it shows: judge the ink, not its thickness.
    low = (change < least * np.clip(alpha, 0.5, 1)).astype(np.uint8)
    band = max(3, round(max(opaque.shape) / 128) | 1)
    contour = _rim(opaque, band)
    lost = contour & low
    window = max(8, max(opaque.shape) // 8)
    near = cv2.boxFilter(contour.astype(np.float32), -1, (window, window), normalize=False)
    near_lost = cv2.boxFilter(lost.astype(np.float32), -1, (window, window), normalize=False)
    worst = float((near_lost / np.maximum(near, window * 0.8)).max())
    return Legibility(float(lost.sum()) / max(1, int(contour.sum())), worst, float((opaque & low).sum()) / count, soft)


def without_invisible(canvas: Floats, ground: Floats) -> Floats:
    """The design without the ink that changes nothing: colour and alpha fade out together, so the pair stays exact."""
    soft = (canvas[..., 3] > 0) & (canvas[..., 3] < 0.9)
    if not soft.any():
        return canvas
    keep = np.clip((difference(canvas, ground) - INVISIBLE) / (VISIBLE - INVISIBLE), 0, 1)
    keep = np.where(soft, keep, 1)[..., None].astype(np.float32)
    return np.asarray(canvas * keep, np.float32)


def contour_colours(rng: Rng, canvas: Floats, most: int = 400) -> Floats:
    """Colours that a ground must differ from: (n, 3) of pixels at the contour and, half as many, inside and soft."""
    opaque = (canvas[..., 3] > 0.6).astype(np.uint8)
    contour = _rim(opaque, 5)
    chosen = [_some(rng, contour, most), _some(rng, opaque, most // 2)]
    if float(canvas[..., 3].max()) <= 0.95 or not opaque.any():
        chosen.append(_some(rng, (canvas[..., 3] > 0.15).astype(np.uint8), most // 2))
    rows, columns = np.concatenate(chosen, axis=1)
    picked = canvas[rows, columns]
    return np.asarray(picked[:, :3] / np.maximum(picked[:, 3:], 1e-3), np.float32)


def _rim(opaque: Bytes, band: int) -> Bytes:
    """The pixels of a 0/1 mask within half of `band` pixels of its edge."""
    core = np.asarray(cv2.erode(opaque, np.ones((band, band), np.uint8)), np.uint8)
    return np.asarray(opaque - core, np.uint8)


def _some(rng: Rng, mask: Bytes, most: int) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    places = np.flatnonzero(mask)
    if len(places) > most:
        places = rng.choice(places, most, replace=False)
    return np.stack(np.unravel_index(places, mask.shape))


def stands_out(colours: Floats, ground: Floats, least: float) -> bool:
    """Whether (n, 3) colours differ by `least` from one (3,) ground colour, but for one in a hundred."""
    if not len(colours):
        return True
    return bool((np.abs(colours - ground).max(axis=1) < least).mean() <= 0.01)
