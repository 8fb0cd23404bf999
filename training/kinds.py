"""Whole designs by kind of art, the rows of the evaluation's table.

Every maker gives a premultiplied (height, width, 4) float32 canvas. Soft ink ends at alpha 0; flat ink is opaque, since
flat see-through ink on a flat ground is the same picture as opaque ink of another colour: it has no right answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.backgrounds import Floats, Rng, gradient, photo_crop, random_colour
from training.designs import (
    WORDS,
    Assets,
    artwork,
    badge,
    fill,
    lettering,
    outlined,
    over,
    place,
    shape_mask,
    silhouette,
    text_mask,
)
from training.textures import blurred, bubble, halftone, smoke, wash, worn

Maker = Callable[[Rng, Assets, int, int], Floats]


def _blank(height: int, width: int) -> Floats:
    return np.zeros((height, width, 4), np.float32)


def _middle(rng: Rng, height: int, width: int) -> tuple[float, float]:
    return width * rng.uniform(0.44, 0.56), height * rng.uniform(0.44, 0.56)


def _turn(rng: Rng) -> float:
    return float(rng.normal(0, 5) if rng.random() < 0.7 else rng.uniform(-40, 40))


def _single(rng: Rng, layer: Floats, height: int, width: int, low: float = 0.45, high: float = 0.95) -> Floats:
    canvas = _blank(height, width)
    place(canvas, layer, _middle(rng, height, width), min(height, width) * rng.uniform(low, high), _turn(rng))
    return canvas


def _art(kind: str) -> Maker:
    """One drawing, rarely with a sticker's border."""

    def make(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
        canvas = _single(rng, artwork(rng, assets, kind), height, width)
        if rng.random() < 0.15:
            canvas = outlined(rng, canvas, rng.uniform(3, 9) * max(height, width) / 384)
        return canvas

    return make


def _line(rng: Rng, canvas: Floats, assets: Assets, level: float, low: float, high: float) -> None:
    """A line of text at a height (share of the canvas), no taller than a fifth of it."""
    height, width = canvas.shape[:2]
    layer = lettering(rng, assets)
    across = min(width * rng.uniform(low, high), 0.19 * height * layer.shape[1] / layer.shape[0])
    place(canvas, layer, (width / 2, height * level), max(across, across * layer.shape[0] / layer.shape[1]))


def words(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """One to four lines of lettering."""
    canvas = _blank(height, width)
    lines = int(rng.integers(1, 5))
    step = height * min(rng.uniform(0.18, 0.26), 0.85 / lines)
    for line in range(lines):
        layer = lettering(rng, assets)
        # A line may not be taller than its row: lines printed over each other are not legible by anybody.
        widest = min(width * rng.uniform(0.45, 0.95), 0.95 * step * layer.shape[1] / layer.shape[0])
        extent = widest if lines > 1 else width * rng.uniform(0.5, 0.95)
        spot = (width / 2, height / 2 + (line - (lines - 1) / 2) * step)
        place(canvas, layer, spot, max(extent, layer.shape[0] * extent / layer.shape[1]), rng.normal(0, 1.5))
    return canvas


def shaped(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """A badge, sometimes with a line of text below."""
    canvas = _single(rng, badge(rng, assets), height, width, 0.55, 0.95)
    if rng.random() < 0.25:
        _line(rng, canvas, assets, 0.89, 0.4, 0.8)
    return canvas


def photo_cut(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """A photo cut by a known shape: an icon, a blob, a brush stroke, letters or a soft round fade."""
    draw = rng.random()
    if draw < 0.35:
        mask = silhouette(rng, assets)
    elif draw < 0.75:
        mask = shape_mask(rng, 384)
    elif draw < 0.9:
        mask = text_mask(rng, assets.fonts, str(rng.choice(WORDS)), 140)
    else:
        y, x = np.mgrid[-1 : 1 : 300 * 1j, -1 : 1 : 300 * 1j].astype(np.float32)
        mask = np.clip((1 - np.hypot(x, y)) * rng.uniform(2, 5), 0, 1)
    if assets.photos:
        paint = photo_crop(rng, assets.photos, *mask.shape)
        layer = np.dstack((paint * mask[..., None], mask)).astype(np.float32)
    else:
        layer = fill(rng, mask)
    if rng.random() < 0.25:
        layer = outlined(rng, np.pad(layer, ((12, 12), (12, 12), (0, 0))), rng.uniform(3, 10))
    canvas = _single(rng, layer, height, width, 0.6, 0.96)
    if rng.random() < 0.2:
        _line(rng, canvas, assets, 0.89, 0.4, 0.85)
    return canvas


def screened(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """A halftone: a drawing or shape that dissolves into dots, or a photo in one ink."""
    if rng.random() < 0.3 and assets.photos:
        tone = 1.1 - photo_crop(rng, assets.photos, height, width).mean(axis=2)
        shape = _single(rng, np.dstack((shape_mask(rng, 320),) * 4), height, width, 0.6, 0.95)[..., 3]
        mask = shape * halftone(rng, height, width, np.asarray(np.clip(tone, 0, 1), np.float32))
        colour = random_colour(rng)
        return np.dstack((mask[..., None] * colour, mask)).astype(np.float32)
    layer = artwork(rng, assets) if rng.random() < 0.6 else fill(rng, shape_mask(rng, 320))
    canvas = _single(rng, layer, height, width, 0.6, 0.97)
    return canvas * halftone(rng, height, width)[..., None]


def distressed(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """Lettering, a badge or a drawing in worn ink."""
    make = (words, shaped, layered, _art("icon"))[rng.integers(4)]
    return make(rng, assets, height, width) * worn(rng, height, width)[..., None]


def glowing(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """A design in a halo of coloured light; never a dark one: that would be a shadow, which is ground."""
    layer = lettering(rng, assets) if rng.random() < 0.4 else artwork(rng, assets)
    canvas = _single(rng, layer, height, width, 0.45, 0.75)
    scale = max(height, width) / 384
    halo = blurred(np.ascontiguousarray(canvas[..., 3]), rng.uniform(5, 18) * scale)
    halo = np.clip(halo * rng.uniform(0.9, 1.7), 0, rng.uniform(0.6, 0.95)).astype(np.float32)
    colour = random_colour(rng)
    colour = np.clip(colour / max(float(colour.max()), 0.2), 0, 1).astype(np.float32)
    glow = np.dstack((halo[..., None] * colour, halo)).astype(np.float32)
    over(glow, canvas)
    return glow


def smoking(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """A cloud of light or coloured smoke, alone or behind a design."""
    colour = random_colour(rng)
    colour = np.clip(colour * rng.uniform(0.75, 1.0) / max(float(colour.max()), 0.05), 0, 1).astype(np.float32)
    mask = smoke(rng, height, width)
    second = random_colour(rng)
    weight = gradient(rng, height, width)[..., None] * np.float32(rng.random() < 0.4)
    paint = colour * (1 - weight) + second * weight
    canvas = np.dstack((paint * mask[..., None], mask)).astype(np.float32)
    if rng.random() < 0.7:
        layer = lettering(rng, assets) if rng.random() < 0.4 else artwork(rng, assets)
        place(canvas, layer, _middle(rng, height, width), min(height, width) * rng.uniform(0.4, 0.75), _turn(rng))
    return canvas


def _sixteenths(point: NDArray[np.float64]) -> tuple[int, int]:
    """A point in the unit of OpenCV's `shift=4`."""
    return int(16 * point[0]), int(16 * point[1])


def thin_lines(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """Fine lines: a line icon, rays, rings, a curve that winds through the picture, a contour map."""
    if rng.random() < 0.45:
        return _single(rng, fill(rng, silhouette(rng, assets, "thin_lines")), height, width, 0.5, 0.95)
    scale = max(height, width) / 384
    mask = np.zeros((height, width), np.uint8)
    middle = np.array((width, height)) * rng.uniform(0.44, 0.56, 2)
    reach = 0.47 * min(height, width)
    thick = max(1, round(rng.uniform(1.0, 3.0) * scale))
    draw = rng.random()
    if draw < 0.25:
        for angle in np.linspace(0, 2 * np.pi, int(rng.integers(10, 40)), endpoint=False):
            direction = np.array((np.cos(angle), np.sin(angle)))
            inner, outer = middle + reach * 0.35 * direction, middle + reach * rng.uniform(0.8, 1) * direction
            cv2.line(mask, _sixteenths(inner), _sixteenths(outer), 255, thick, cv2.LINE_AA, 4)
    elif draw < 0.5:
        for radius in np.linspace(0.15, 1, int(rng.integers(3, 10))) * reach:
            cv2.circle(mask, _sixteenths(middle), int(16 * radius), 255, thick, cv2.LINE_AA, 4)
    elif draw < 0.8:
        t = np.linspace(0, 2 * np.pi, 900)
        a, b = rng.integers(1, 8, 2)
        curve = np.stack((np.sin(a * t + rng.uniform(0, 6)), np.sin(b * t)), axis=1)
        points = ((middle + reach * curve) * 16).astype(np.int32)
        cv2.polylines(mask, [points], True, 255, thick, cv2.LINE_AA, 4)
    else:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        hills = np.hypot(x - middle[0], y - middle[1]) / reach
        hills += 0.12 * np.sin(x / (30 * scale) + rng.uniform(0, 6)) + 0.12 * np.sin(y / (37 * scale))
        rings = np.abs((hills * rng.uniform(5, 9)) % 1 - 0.5)
        step = np.hypot(*np.gradient(hills)) * 7
        lines = np.clip(thick * 0.5 - (0.5 - rings) / np.maximum(step, 1e-3) + 0.5, 0, 1) * (hills < 1)
        mask = (lines * 255).astype(np.uint8)
    canvas = fill(rng, mask.astype(np.float32) / np.float32(255))
    if rng.random() < 0.3:
        place(canvas, lettering(rng, assets), tuple(middle), reach * rng.uniform(0.6, 1.2))
    return canvas


def transparent(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """See-through parts with a shape of their own: bubbles, watercolour, art that fades out, a vignette."""
    draw = rng.random()
    if draw < 0.3:
        canvas = _blank(height, width) if rng.random() < 0.5 else _single(rng, artwork(rng, assets), height, width)
        for _ in range(rng.integers(2, 7)):
            body, shine = bubble(int(rng.integers(60, 200) * max(height, width) / 384))
            colour = random_colour(rng)
            layer = np.dstack((body[..., None] * colour, body)).astype(np.float32)
            over(layer, np.repeat(shine[..., None], 4, axis=2))
            spot = (width * rng.uniform(0.2, 0.8), height * rng.uniform(0.2, 0.8))
            place(canvas, layer, spot, layer.shape[0], 0)
        return canvas
    if draw < 0.6:
        canvas = fill(rng, wash(rng, height, width))
        if rng.random() < 0.6:
            layer = lettering(rng, assets) if rng.random() < 0.5 else artwork(rng, assets)
            place(canvas, layer, _middle(rng, height, width), min(height, width) * rng.uniform(0.4, 0.7), _turn(rng))
        return canvas
    canvas = _single(rng, artwork(rng, assets) if draw < 0.8 else badge(rng, assets), height, width, 0.6, 0.95)
    ramp = gradient(rng, height, width) * rng.uniform(1.5, 2.6) + rng.uniform(-0.5, 0.1)
    return canvas * np.clip(ramp, 0, 1)[..., None].astype(np.float32)


def layered(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """Several pieces: art between lines of text, scattered elements, a frame, splatters."""
    canvas = _blank(height, width)
    short = min(height, width)
    draw = rng.random()
    if draw < 0.5:
        place(canvas, artwork(rng, assets), _middle(rng, height, width), short * rng.uniform(0.4, 0.65), _turn(rng))
        for level in ((0.13,), (0.87,), (0.12, 0.88))[rng.integers(3)]:
            _line(rng, canvas, assets, level, 0.4, 0.9)
    elif draw < 0.8:
        for _ in range(rng.integers(2, 8)):
            spot = (width * rng.uniform(0.15, 0.85), height * rng.uniform(0.15, 0.85))
            layer = artwork(rng, assets) if rng.random() < 0.8 else lettering(rng, assets)
            place(canvas, layer, spot, short * rng.uniform(0.15, 0.5), rng.uniform(-40, 40))
    else:
        place(canvas, badge(rng, assets), _middle(rng, height, width), short * rng.uniform(0.5, 0.8), 0)
        for _ in range(rng.integers(1, 5)):
            spot = (width * rng.uniform(0.12, 0.88), height * rng.uniform(0.12, 0.88))
            place(canvas, artwork(rng, assets), spot, short * rng.uniform(0.12, 0.3), rng.uniform(-40, 40))
    if rng.random() < 0.12:
        for _ in range(rng.integers(3, 25)):
            spot = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
            red, green, blue = (float(part) for part in random_colour(rng))
            cv2.circle(
                canvas, spot, int(rng.uniform(1.5, 5) * short / 384) + 1, (red, green, blue, 1.0), -1, cv2.LINE_AA
            )
    return canvas


@dataclass(frozen=True)
class Kind:
    """A kind of art."""

    make: Maker
    #: How often training sees it; the shares add up to 1.
    share: float
    #: The same in a run that works on what is hardest (`--further`).
    focus: float


KINDS = {
    "icon": Kind(_art("icon"), 0.09, 0.05), "emoji": Kind(_art("emoji"), 0.09, 0.05),
    "illustration": Kind(_art("illustration"), 0.09, 0.06), "lettering": Kind(words, 0.11, 0.08),
    "badge": Kind(shaped, 0.09, 0.05), "photo_cut": Kind(photo_cut, 0.07, 0.07),
    "halftone": Kind(screened, 0.05, 0.08), "distressed": Kind(distressed, 0.07, 0.06),
    "glow": Kind(glowing, 0.06, 0.09), "smoke": Kind(smoking, 0.04, 0.13),
    "thin_lines": Kind(thin_lines, 0.06, 0.11), "transparent": Kind(transparent, 0.06, 0.13),
    "layered": Kind(layered, 0.12, 0.04),
}  # fmt: skip
