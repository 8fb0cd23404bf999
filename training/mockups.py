"""Mock-up photos: a shirt, tote bag, cushion or poster before a backdrop, with the place where a design goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from training.backgrounds import Bytes, Floats, Rng, blend, fabric, gradient, paper, photo_crop, wood
from training.textures import blurred

#: Right half of a T-shirt's outline, (x, y): x from its middle, y from collar to hem, in shirt lengths.
SHIRT = ((0.13, 0.0), (0.34, 0.05), (0.58, 0.27), (0.47, 0.40), (0.365, 0.31), (0.36, 0.65), (0.375, 1.0))


@dataclass(frozen=True)
class Stage:
    """A scene before it has colours: where the thing is, and where its print goes."""

    #: "shirt", "tote", "cushion" or "poster".
    thing: str
    #: (H, W) float32 0..1.
    mask: Floats
    #: Left, top, width, height of the print, pixels.
    zone: tuple[int, int, int, int]

    @staticmethod
    def draw(rng: Rng, height: int, width: int) -> Stage:
        """Choose a thing and its place in the picture."""
        thing = str(rng.choice(("shirt", "shirt", "tote", "cushion", "poster")))
        if thing == "shirt":
            return Stage(thing, *_shirt(rng, height, width))
        if thing == "tote":
            return Stage(thing, *_tote(rng, height, width))
        return Stage(thing, *_panel(rng, height, width, rng.uniform(0.1, 0.3) if thing == "cushion" else 0.005))

    def dressed(self, rng: Rng, photos: Sequence[Bytes], base: Callable[[], Floats]) -> tuple[Floats, Floats]:
        """Colour (H, W, 3) and shading (H, W) of the scene without its print, as a background's.

        Args:
            base: gives the colour (3,) of the thing.
        """
        mask, scale = self.mask, max(self.mask.shape) / 384
        height, width = mask.shape
        colour, backdrop_shading = backdrop(rng, photos, height, width)
        if self.thing == "poster":
            thing, shading = np.broadcast_to(base(), colour.shape), paper(rng, height, width)[1]
        else:
            thing, shading = fabric(rng, height, width, base())
        if self.thing == "shirt":
            shading = shading * _rim_seam(mask)
        # A shadow beside the thing and the rounding of its rim make it an object, not a cut-out.
        shadow = blurred(mask, rng.uniform(4, 14) * scale)
        move = np.array([[1, 0, rng.normal(0, 3) * scale], [0, 1, rng.uniform(1, 6) * scale]])
        cast = np.asarray(cv2.warpAffine(shadow, move, (width, height), borderMode=cv2.BORDER_REPLICATE), np.float32)
        colour = colour * (1 - np.float32(rng.uniform(0.15, 0.5)) * cast)[..., None]
        rim = np.clip(blurred(mask, 5 * scale) * 1.6 - 0.5, 0, 1)
        shading = shading * (1 - np.float32(rng.uniform(0.05, 0.3)) * (1 - rim))
        inside = mask[..., None]
        return (
            np.asarray(thing * inside + colour * (1 - inside), np.float32),
            np.asarray(shading * mask + backdrop_shading * (1 - mask), np.float32),
        )


def backdrop(rng: Rng, photos: Sequence[Bytes], height: int, width: int) -> tuple[Floats, Floats]:
    """A studio wall, a table, or a room out of focus: (colour, shading)."""
    draw = rng.random()
    if draw < 0.55 or (draw >= 0.75 and not photos):
        first = np.full(3, rng.uniform(0.45, 0.98), np.float32) + rng.normal(0, 0.03, 3).astype(np.float32)
        weight = gradient(rng, height, width)
        return np.clip(blend(first, first * np.float32(rng.uniform(0.7, 1)), weight), 0, 1), np.ones_like(weight)
    if draw < 0.75:
        return wood(rng, height, width)
    picture = cv2.GaussianBlur(photo_crop(rng, photos, height, width), (0, 0), rng.uniform(2, 6))
    return np.asarray(picture, np.float32), np.ones((height, width), np.float32)


def _filled(height: int, width: int, outline: Floats) -> Floats:
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), 0.7), np.float32) / np.float32(255)


def _shirt(rng: Rng, height: int, width: int) -> tuple[Floats, tuple[int, int, int, int]]:
    tall = rng.uniform(0.95, 1.5) * height
    wide = tall * rng.uniform(0.95, 1.1)
    top = height * rng.uniform(-0.12, 0.06)
    middle = width * rng.uniform(0.46, 0.54)
    half = np.array(SHIRT, np.float32)
    half = half + rng.normal(0, 0.006, half.shape).astype(np.float32)
    left = half[::-1] * np.array((-1, 1), np.float32)
    collar = np.array(((-0.07, 0.055), (0.0, 0.075), (0.07, 0.055)), np.float32)
    outline = np.concatenate((half, left, collar)) * np.array((wide, tall), np.float32)
    mask = _filled(height, width, outline + np.array((middle, top), np.float32))
    across = min(wide * 0.56, width * 0.9)
    down = min(tall * 0.58, height * 0.92 - (top + tall * 0.14))
    return mask, (int(middle - across / 2), int(top + tall * 0.14), int(across), int(down))


def _rim_seam(mask: Floats) -> Floats:
    """The seam beside the outline, a thin dark line: (H, W) factor."""
    width = max(2.0, max(mask.shape) / 90)
    # Clipped: where nothing is outside the mask, OpenCV gives a distance whose square is infinite.
    distance = np.minimum(cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 3), 9 * width)
    return np.asarray(1 - 0.12 * np.exp(-((distance - 2 * width) ** 2) / (0.4 * width)), np.float32)


def _tote(rng: Rng, height: int, width: int) -> tuple[Floats, tuple[int, int, int, int]]:
    left, top = width * rng.uniform(0.04, 0.14), height * rng.uniform(0.1, 0.22)
    right, low = width - left, height * rng.uniform(0.93, 1.1)
    waist = width * rng.uniform(0, 0.03)
    corners = np.array(((left + waist, top), (right - waist, top), (right, low), (left, low)), np.float32)
    mask = _filled(height, width, corners)
    strap = max(4, round(width * 0.05))
    arch = np.zeros((height, width), np.uint8)
    centre, axes = (width // 2, int(top)), (int(width * 0.2), int(height * 0.35))
    cv2.ellipse(arch, centre, axes, 0, 180, 360, 255, strap, cv2.LINE_AA)
    mask = np.maximum(mask, arch.astype(np.float32) / np.float32(255))
    gap = (right - left) * 0.08
    down = min(low, height) - top
    return mask, (int(left + gap), int(top + down * 0.1), int(right - left - 2 * gap), int(down * 0.8))


def _panel(rng: Rng, height: int, width: int, rounding: float) -> tuple[Floats, tuple[int, int, int, int]]:
    x, y = int(width * rng.uniform(0.04, 0.16)), int(height * rng.uniform(0.04, 0.16))
    across, down = width - 2 * x, height - 2 * y
    radius = max(1, int(rounding * min(across, down)))
    mask = np.zeros((height, width), np.uint8)
    cv2.rectangle(mask, (x + radius, y + radius), (x + across - radius, y + down - radius), 255, -1)
    mask = np.asarray(cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)), np.uint8)
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), 0.8), np.float32) / np.float32(255)
    gap_x, gap_y = int(across * 0.06), int(down * 0.06)
    return soft, (x + gap_x, y + gap_y, across - 2 * gap_x, down - 2 * gap_y)
