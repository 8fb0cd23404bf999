"""Enclosed holes of flat-background artwork: the counters of letters, the inside of bold rings.

A matting network finds the art's silhouette and often fills what it encloses. On a flat background the enclosed
pieces of that very colour are known, but not all of them are holes: the white of an eye stays, and so does the white
body of an outlined drawing. The rule is ours: a piece is a hole when the model itself doubts it, or when the art
around it is of one ink, that ink fills a good part of its own silhouette, as letters do and outlines do not, and lies
on the background or in another hole.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from worker.images.ground import Floats, Ground, find_ground
from worker.images.picture import Picture, Pixels

#: Pieces smaller than this share of the picture are noise between strokes, not holes. 6 px at 1024x1024.
_MIN_SHARE = 6e-6
#: Standard deviation (0-255, root mean square over channels) up to which ink counts as one colour.
_ONE_INK = 22.0
#: Share of an ink's silhouette (the ink and what it encloses) that is ink. Letters have 0.3 and more, light weights
#: included; the outline of a drawing has 0.05 to 0.2.
_BOLD = 0.22
#: Mean alpha of a piece below which the model itself doubts that it is art.
_DOUBT = 0.5
#: Width of the band around a hole whose alpha is measured anew, in pixels: antialiasing plus JPEG ringing; a scanner's
#: blur is wider.
_EDGE, _SCANNED_EDGE = 2, 4
#: How far from its outline ink is believed to be pure, in pixels, best first: JPEG blurs colour over 2 px.
_CORES = (3, 1)

#: Pixels of the picture that ink colours are read from, at most about: all of 24 megapixels would take 400 MB.
_SAMPLES = 1_000_000

Mask = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]


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


def punch_holes(picture: Picture, mask: Mask) -> Holes:
    """Take enclosed holes out of a mask.

    Args:
        picture: the prepared side; one with transparency of its own is left alone.
        mask: (H, W) float32 in 0..1 at the picture's size.
    """
    ground = None if picture.alpha is not None else find_ground(picture.rgb)
    if ground is None:
        return Holes(mask, 0, flat=False)
    paper = _paper(ground)
    pieces, stats = _components(paper, connectivity=4)
    inside = _inside(stats, paper.shape)
    inside &= stats[:, cv2.CC_STAT_AREA] >= max(2, _MIN_SHARE * paper.size)
    inside[0] = False  # the ink
    if not inside.any():
        return Holes(mask, 0, flat=True)

    inks, ink_stats = _components(1 - paper, connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    enclosed_at = inside[pieces]
    alpha = np.bincount(pieces[enclosed_at], weights=mask[enclosed_at], minlength=len(stats))
    doubted = alpha < _DOUBT * area
    # From the top down, so that whatever encloses a piece is decided before it.
    order = sorted(np.flatnonzero(inside).tolist(), key=lambda piece: int(stats[piece, cv2.CC_STAT_TOP]))
    around = {piece: _ink_around(piece, pieces, inks, stats) for piece in order}
    enclosed = np.zeros(len(ink_stats))
    np.add.at(enclosed, list(around.values()), area[list(around)])
    ink_area = ink_stats[:, cv2.CC_STAT_AREA]
    colour, spread = _ink_colours(ground.pixels, paper, inks, np.where(enclosed > 0, ink_area, 0))
    lettering = (ink_area >= _BOLD * (ink_area + enclosed)) & (spread <= _ONE_INK)

    found: set[int] = set()
    for piece, ink in around.items():
        beyond = _paper_around(ink, inks, pieces, ink_stats)
        # White inside white that stays, a pupil in the eye of an outlined bear, stays with it.
        if doubted[piece] or (lettering[ink] and (not inside[beyond] or beyond in found)):
            found.add(piece)
    out = mask.copy()
    for piece in found:
        _punch(out, picture.rgb, ground, pieces, stats, piece, colour[around[piece]])
    return Holes(out, len(found), flat=True)


def _paper(ground: Ground) -> Pixels:
    """(H, W) uint8, 1 where the picture has the ground's colour."""
    distance = cv2.absdiff(ground.pixels, ground.colours)
    far = cv2.max(cv2.max(cv2.extractChannel(distance, 0), cv2.extractChannel(distance, 1)), distance[..., 2])
    return np.asarray(cv2.threshold(far, ground.tolerance, 1, cv2.THRESH_BINARY_INV)[1], np.uint8)


def _components(shape: Pixels, connectivity: int) -> tuple[Labels, Labels]:
    """Labels (H, W) of the connected parts of a 0/1 picture, and OpenCV's statistics (n, 5); 0 is what is 0."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(shape, connectivity=connectivity)
    return np.asarray(labels, np.int32), np.asarray(stats, np.int32)


def _inside(stats: Labels, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Components that do not touch the picture's border."""
    x, y, w, h = (stats[:, i] for i in range(4))
    return (x > 0) & (y > 0) & (x + w < shape[1]) & (y + h < shape[0])


def _ink_around(piece: int, pieces: Labels, inks: Labels, stats: Labels) -> int:
    """The ink that encloses a piece: what is above its topmost pixel belongs to its outer ring."""
    x, y, w = (int(v) for v in stats[piece, :3])
    return int(inks[y - 1, x + int(np.argmax(pieces[y, x : x + w] == piece))])


def _paper_around(ink: int, inks: Labels, pieces: Labels, ink_stats: Labels) -> int:
    """The piece of paper that an ink lies on; 0 where it reaches the picture's upper border."""
    x, y, w = (int(v) for v in ink_stats[ink, :3])
    return int(pieces[y - 1, x + int(np.argmax(inks[y, x : x + w] == ink))]) if y else 0


def _punch(out: Mask, rgb: Pixels, ground: Ground, pieces: Labels, stats: Labels, piece: int, ink: Floats) -> None:
    """Clear a piece in a mask, in place, and measure the alpha of the band around it anew."""
    x, y, w, h = (int(v) for v in stats[piece, :4])
    edge = _SCANNED_EDGE if ground.grainy else _EDGE
    window = (slice(max(0, y - edge - 1), y + h + edge + 1), slice(max(0, x - edge - 1), x + w + edge + 1))
    hole = (pieces[window] == piece).astype(np.uint8)
    near = cv2.dilate(hole, np.ones((2 * edge + 1, 2 * edge + 1), np.uint8)).astype(bool)
    part = out[window]
    part[near] = np.minimum(part[near], _unmix(rgb[window][near], ground.colours[window][near], ink))
    part[hole.astype(bool)] = 0


def _ink_colours(rgb: Pixels, paper: Pixels, inks: Labels, area: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Mean colour (n, 3) and spread (n,) of ink components, from the core of each where it has one.

    The outermost pixels of ink are blended with the paper and would make every line look many-coloured.

    Args:
        area: (n,) pixels of each component, 0 for those that nobody asks for. Of large ones a grid of samples is read.
    """
    count = len(area)
    step = max(1, round((paper.size / _SAMPLES) ** 0.5))
    sampled = ((area > 0) & (area < 400 * step**2))[inks]
    sampled[::step, ::step] |= (area > 0)[inks[::step, ::step]]
    core = np.zeros(paper.shape, np.bool_)
    known = area == 0
    for depth in (*_CORES, 0):  # at depth 0 strokes of one or two pixels: all of their ink
        deep = cv2.erode(1 - paper, np.ones((2 * depth + 1, 2 * depth + 1), np.uint8)).astype(bool)
        core |= deep & sampled & ~known[inks]
        labels = inks[core]
        number = np.bincount(labels, minlength=count)
        known = (area == 0) | (number > 0)
        if known.all():
            break
    number = np.maximum(number, 1)
    values = rgb[core].astype(np.float64)
    mean = np.stack([np.bincount(labels, values[:, c], count) for c in range(3)], axis=1) / number[:, None]
    square = np.stack([np.bincount(labels, values[:, c] ** 2, count) for c in range(3)], axis=1) / number[:, None]
    spread: Floats = np.sqrt(np.maximum(square - mean**2, 0).mean(axis=1))
    return mean, spread


def _unmix(colours: Pixels, background: Pixels, ink: Floats) -> npt.NDArray[np.float32]:
    """Alpha of pixels that are blends of two known colours: the position of each between them."""
    direction = ink - background
    length = np.maximum((direction**2).sum(axis=1), 1)
    alpha = ((colours.astype(np.float64) - background) * direction).sum(axis=1) / length
    return np.asarray(alpha.clip(0, 1), np.float32)
