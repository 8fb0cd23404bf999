"""Enclosed holes of flat-background artwork: the counters of letters, the inside of rings.

A matting network finds the art's silhouette and often fills what it encloses. On a flat background the enclosed
pieces of that very colour are known exactly, but not all of them are holes: the white of an eye stays. The rule is
ours: a piece is a hole when the art around it is of one ink (lettering, line icons, rings), or when the model itself
doubts it. Art of several colours keeps its white.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from worker.images.picture import Picture, Pixels

#: Share of the border ring that must have the background's colour for it to count as flat.
_FLAT_SHARE = 0.95
#: Width of that ring over the shorter side.
_RING = 0.02
#: Largest channel difference (0-255) that is still the background: JPEG leaves a few levels of noise on flat colour.
_TOLERANCE = 12
#: Pieces smaller than this share of the picture are noise between strokes, not holes. 6 px at 1024x1024.
_MIN_SHARE = 6e-6
#: Standard deviation (0-255, root mean square over channels) up to which ink counts as one colour.
_ONE_INK = 22.0
#: Mean alpha of a piece below which the model itself doubts that it is art.
_DOUBT = 0.5
#: Width of the band around a hole whose alpha is measured anew, in pixels: antialiasing plus JPEG ringing.
_EDGE = 2

Mask = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Holes:
    """What was found.

    Attributes:
        mask: (H, W) float32 in 0..1 with the holes punched out.
        count: how many holes. flat: whether the background is flat at all.
    """

    mask: Mask
    count: int
    flat: bool


def flat_background(rgb: Pixels) -> npt.NDArray[np.uint8] | None:
    """The one colour of the picture's border, (3,) uint8, or None when the border has several."""
    height, width = rgb.shape[:2]
    ring = max(1, round(min(height, width) * _RING))
    border = np.concatenate([part.reshape(-1, 3) for part in (rgb[:ring], rgb[-ring:], rgb[:, :ring], rgb[:, -ring:])])
    colour = np.median(border, axis=0)
    same = np.abs(border - colour).max(axis=1) <= _TOLERANCE
    return colour.astype(np.uint8) if same.mean() >= _FLAT_SHARE else None


def punch_holes(picture: Picture, mask: Mask) -> Holes:
    """Take enclosed holes out of a mask.

    Args:
        picture: the prepared side; one with transparency of its own is left alone.
        mask: (H, W) float32 in 0..1 at the picture's size.
    """
    background = None if picture.alpha is not None else flat_background(picture.rgb)
    if background is None:
        return Holes(mask, 0, flat=False)
    distance = cv2.absdiff(picture.rgb, np.broadcast_to(background, picture.rgb.shape)).max(axis=2)
    paper = (distance <= _TOLERANCE).astype(np.uint8)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(paper, connectivity=4)
    inside = _inside(stats, paper.shape)
    inside &= stats[:, cv2.CC_STAT_AREA] >= max(2, _MIN_SHARE * paper.size)
    inside[0] = False  # the ink
    if not inside.any():
        return Holes(mask, 0, flat=True)

    _, inks = cv2.connectedComponents(1 - paper, connectivity=8)
    alpha_sum = np.bincount(pieces.ravel(), weights=mask.ravel(), minlength=count)
    doubted = alpha_sum / np.maximum(stats[:, cv2.CC_STAT_AREA], 1) < _DOUBT
    colour, spread = _ink_colours(picture.rgb, paper, inks)
    out = mask.copy()
    holes = 0
    for piece in np.flatnonzero(inside):
        x, y, w, h = (int(v) for v in stats[piece, :4])
        around = inks[
            y - 1, x + int(np.argmax(pieces[y, x : x + w] == piece))
        ]  # above its topmost pixel: its outer ring
        if not doubted[piece] and spread[around] > _ONE_INK:
            continue
        holes += 1
        pad = _EDGE + 1
        window = (slice(max(0, y - pad), y + h + pad), slice(max(0, x - pad), x + w + pad))
        hole = (pieces[window] == piece).astype(np.uint8)
        near = cv2.dilate(hole, np.ones((2 * _EDGE + 1, 2 * _EDGE + 1), np.uint8)).astype(bool)
        part = out[window]
        part[near] = np.minimum(part[near], _unmix(picture.rgb[window][near], background, colour[around]))
        part[hole.astype(bool)] = 0
    return Holes(out, holes, flat=True)


def _inside(stats: npt.NDArray[np.int32], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Components that do not touch the picture's border."""
    x, y, w, h = (stats[:, i] for i in range(4))
    return (x > 0) & (y > 0) & (x + w < shape[1]) & (y + h < shape[0])


def _ink_colours(
    rgb: Pixels, paper: Pixels, inks: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean colour (n, 3) and spread (n,) of every ink component, from its core where it has one.

    The outermost pixel of ink is blended with the paper and would make every line look many-coloured.
    """
    core = cv2.erode(1 - paper, np.ones((3, 3), np.uint8)).astype(bool)
    count = int(inks.max()) + 1
    labels = inks[core]
    has_core = np.bincount(labels, minlength=count) > 0
    if not has_core[1:].all():  # strokes of one or two pixels: all of their ink
        thin = ~core & (paper == 0) & ~has_core[inks]
        core |= thin
        labels = inks[core]
    number = np.maximum(np.bincount(labels, minlength=count), 1)
    values = rgb[core].astype(np.float64)
    mean = np.stack([np.bincount(labels, values[:, c], count) for c in range(3)], axis=1) / number[:, None]
    square = np.stack([np.bincount(labels, values[:, c] ** 2, count) for c in range(3)], axis=1) / number[:, None]
    spread: npt.NDArray[np.float64] = np.sqrt(np.maximum(square - mean**2, 0).mean(axis=1))
    return mean, spread


def _unmix(colours: Pixels, background: npt.NDArray[np.uint8], ink: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Alpha of pixels that are blends of two known colours: the position of each between them."""
    direction = ink - background
    length = float(direction @ direction)
    if length < 1:
        return np.zeros(len(colours), np.float32)
    alpha = ((colours.astype(np.float64) - background) @ direction) / length
    return alpha.clip(0, 1).astype(np.float32)
