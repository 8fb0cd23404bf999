"""What a design sits on: procedural fabric, paper, wood, gradients, patterns, and crops of photos.

Every function takes a NumPy random generator and a size and gives float32 RGB in 0..1; a background that also shades
the ink printed on it (fabric folds, paper grain) gives that shading as a second map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Rng = np.random.Generator

#: Kinds of ground and how often they come: what shops are sent most is flat, then cloth, then mock-up photos.
GROUNDS = {
    "flat": 0.28, "garment": 0.22, "mockup_photo": 0.15, "gradient": 0.10, "paper": 0.07, "photo": 0.08, "wood": 0.05,
    "pattern": 0.05,
}  # fmt: skip
#: The same shares in a run that works on what is hardest (`--further`).
FOCUS_GROUNDS = {
    "flat": 0.20, "garment": 0.20, "mockup_photo": 0.18, "gradient": 0.11, "paper": 0.06, "photo": 0.10, "wood": 0.09,
    "pattern": 0.06,
}  # fmt: skip
#: Common garment colours, RGB 0..255.
GARMENTS = (
    (255, 255, 255), (250, 248, 242), (20, 20, 22), (34, 34, 38), (66, 68, 72), (120, 122, 126), (200, 201, 203),
    (28, 38, 72), (36, 64, 122), (140, 170, 205), (120, 24, 34), (190, 30, 45), (30, 72, 50), (96, 108, 74),
    (222, 184, 60), (235, 200, 205), (86, 52, 110), (214, 196, 170), (110, 78, 56), (240, 120, 50), (60, 160, 150),
)  # fmt: skip


def random_colour(rng: Rng) -> Floats:
    """(3,) RGB, spread over hue, saturation and value rather than over the RGB cube (which is mostly grey)."""
    hue, saturation = rng.uniform(0, 360), rng.beta(1.2, 1.0)
    value = rng.beta(2.2, 1.1)
    pixel = np.array([[[hue, saturation, value]]], np.float32)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0], np.float32)


def plain_colour(rng: Rng) -> Floats:
    """(3,) RGB of a plain background: mostly white, black, greys, sometimes any colour."""
    draw = rng.random()
    if draw < 0.34:
        return np.full(3, 1.0, np.float32)
    if draw < 0.46:
        return np.asarray(np.full(3, rng.uniform(0.88, 1.0)) - rng.uniform(0, 0.04, 3), np.float32)
    if draw < 0.60:
        return np.full(3, 0.0 if rng.random() < 0.6 else rng.uniform(0, 0.15), np.float32)
    if draw < 0.68:
        return np.full(3, rng.uniform(0.15, 0.85), np.float32)
    return random_colour(rng)


def noise(rng: Rng, height: int, width: int, cell_y: float, cell_x: float) -> Floats:
    """Smooth noise, (height, width) float32 with mean 0 and deviation about 1; a cell is the grain size in pixels."""
    rows, columns = max(2, round(height / cell_y)), max(2, round(width / cell_x))
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def turned_noise(rng: Rng, height: int, width: int, long: float, short: float) -> Floats:
    """Streaky noise in a random direction, (height, width) float32, mean 0, deviation about 1."""
    side = int(np.hypot(height, width)) + 2
    field = noise(rng, side, side, long, short)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(0, 180), 1.0)
    field = np.asarray(cv2.warpAffine(field, turn, (side, side), borderMode=cv2.BORDER_REFLECT), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    return np.asarray(field[top : top + height, left : left + width], np.float32)


def gradient(rng: Rng, height: int, width: int) -> Floats:
    """A ramp 0..1, linear in any direction or radial; (height, width) float32."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if rng.random() < 0.65:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = x * np.cos(angle) + y * np.sin(angle)
    else:
        ramp = np.hypot(x - rng.uniform(0.2, 0.8) * width, y - rng.uniform(0.2, 0.8) * height)
    low, high = float(ramp.min()), float(ramp.max())
    return np.asarray((ramp - low) / max(high - low, 1e-6), np.float32)


def blend(first: Floats, second: Floats, weight: Floats) -> Floats:
    """Mix two (3,) colours by an (H, W) weight: (H, W, 3) float32."""
    return np.asarray(first + weight[..., None] * (second - first), np.float32)


def garment_colour(rng: Rng) -> Floats:
    """(3,) RGB of a garment: one that shops sell, or (three in ten) any."""
    if rng.random() < 0.3:
        return random_colour(rng)
    return np.array(GARMENTS[int(rng.integers(len(GARMENTS)))], np.float32) / np.float32(255)


def fabric(rng: Rng, height: int, width: int, colour: Floats) -> tuple[Floats, Floats]:
    """A garment's cloth: (colour (H, W, 3), shading (H, W)); shading multiplies ink and cloth alike.

    Weave, knit or plain; heather flecks; folds; seams; light from one side.
    """
    scale = max(height, width) / 384
    cloth = np.broadcast_to(colour, (height, width, 3)).astype(np.float32)
    flecks = rng.random()
    if flecks < 0.45:  # heather: horizontal flecks of a lighter or darker yarn
        strength = rng.uniform(0.02, 0.14)
        grain = noise(rng, height, width, rng.uniform(1, 1.6) * scale, rng.uniform(3, 9) * scale)
        cloth = cloth + (strength * grain)[..., None]
    shading = np.ones((height, width), np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    weave = rng.random()
    if weave < 0.6:
        period = rng.uniform(2.2, 6.0) * scale
        angle = rng.normal(0, 0.05) if weave < 0.45 else rng.uniform(0, np.pi)
        across = x * np.cos(angle) + y * np.sin(angle)
        along = y * np.cos(angle) - x * np.sin(angle)
        wave = np.sin(2 * np.pi * across / period)
        if rng.random() < 0.6:
            wave = wave * np.sin(2 * np.pi * along / (period * rng.uniform(0.6, 1.2)))
        shading += (rng.uniform(0.01, 0.06) * wave).astype(np.float32)
    if rng.random() < 0.6:
        shading += rng.uniform(0.005, 0.03) * noise(rng, height, width, 1.3, 1.3)
    for _ in range(rng.integers(0, 4)):  # folds: soft ridges, bright on one flank
        long = rng.uniform(120, 500) * scale
        field = turned_noise(rng, height, width, long, long * rng.uniform(0.15, 0.5))
        if rng.random() < 0.5:
            field = (0.8 - np.abs(field)).astype(np.float32)
        shading += rng.uniform(0.01, 0.09) * field
    if rng.random() < 0.5:
        shading *= 1 - rng.uniform(0, 0.35) * gradient(rng, height, width)
    if rng.random() < 0.2:
        shading *= seam(rng, height, width)
    return cloth, np.clip(shading, 0.35, 1.5)


def seam(rng: Rng, height: int, width: int) -> Floats:
    """A seam near one border: a ridge and one or two rows of stitches, (height, width) factor around 1."""
    rows, columns = (height, width) if rng.random() < 0.5 else (width, height)
    scale = max(height, width) / 384
    at = int(rows * rng.choice((rng.uniform(0.02, 0.08), rng.uniform(0.92, 0.98))))
    y = np.arange(rows, dtype=np.float32)[:, None]
    field = 1 - np.float32(0.2) * np.exp(-(((y - at) / (1.5 * scale)) ** 2)) * np.ones((1, columns), np.float32)
    stitch = np.arange(columns) % max(4, round(7 * scale)) < max(2, round(4.5 * scale))
    for gap in (4, 8)[: int(rng.integers(1, 3))]:
        row = int(at + gap * scale)
        if row < rows:
            field[row, stitch] *= 0.82
    return np.ascontiguousarray(field if rows == height and columns == width else field.T, np.float32)


def paper(rng: Rng, height: int, width: int) -> tuple[Floats, Floats]:
    """Light paper or card with grain, stains and uneven light: (colour, shading)."""
    tint = np.array((rng.uniform(0.80, 1.0), rng.uniform(0.78, 0.98), rng.uniform(0.68, 0.97)), np.float32)
    if rng.random() < 0.5:
        tint = np.full(3, rng.uniform(0.86, 1.0), np.float32)
    shading = 1 + rng.uniform(0.003, 0.03) * noise(rng, height, width, 1.2, 1.2)
    shading = shading + rng.uniform(0, 0.04) * noise(rng, height, width, 25, 25)
    shading = shading * (1 - rng.uniform(0, 0.3) * gradient(rng, height, width))
    return np.broadcast_to(tint, (height, width, 3)).astype(np.float32), shading.astype(np.float32)


def wood(rng: Rng, height: int, width: int) -> tuple[Floats, Floats]:
    """Boards with grain: (colour, shading)."""
    light = np.array((0.80, 0.62, 0.42), np.float32) * rng.uniform(0.5, 1.15)
    light = np.clip(light + rng.normal(0, 0.05, 3), 0, 1).astype(np.float32)
    across = rng.random() < 0.5
    rows, columns = (width, height) if across else (height, width)
    grain = noise(rng, rows, columns, rng.uniform(1.2, 4), rng.uniform(60, 250))
    rings = np.sin(noise(rng, rows, columns, rng.uniform(25, 80), 300) * rng.uniform(4, 14))
    field: Floats = 1 + rng.uniform(0.03, 0.12) * grain + rng.uniform(0.02, 0.10) * rings
    board = int(rng.uniform(0.14, 0.5) * rows)
    for start in range(int(rng.integers(1, board + 1)), rows, board):  # a dark joint between boards
        field[max(0, start - 1) : start + 1] *= 0.5
        field[start:] *= rng.uniform(0.85, 1.15)
    field = np.ascontiguousarray(field.T if across else field)
    colour = np.clip(light * np.clip(field, 0.2, 1.6)[..., None], 0, 1)
    return colour.astype(np.float32), np.ones((height, width), np.float32)


def checkerboard(rng: Rng, height: int, width: int) -> Floats:
    """The grey checks by which programs show "nothing here", saved into the picture: (H, W, 3)."""
    side = max(4, int(rng.uniform(6, 20) * max(height, width) / 384))
    light, dark = ((1.0, 0.8), (0.8, 0.6), (1.0, 0.94), (0.4, 0.3))[rng.integers(4)]
    y, x = np.arange(height)[:, None] // side, np.arange(width)[None] // side
    checks = np.where((x + y) % 2 == 0, light, dark).astype(np.float32)
    return np.repeat(checks[..., None], 3, axis=2)


def pattern(rng: Rng, height: int, width: int, first: Floats) -> tuple[Floats, Floats]:
    """A regular pattern in two near colours (stripes, checks, dots): (colour, shading)."""
    second = np.clip(first + rng.normal(0, 0.18, 3), 0, 1).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period, angle = rng.uniform(10, 60), rng.uniform(0, np.pi)
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(2 * np.pi * across / period)
    kind = rng.integers(3)
    if kind == 1:
        wave = wave * np.sin(2 * np.pi * along / period)
    elif kind == 2:
        wave = wave + np.sin(2 * np.pi * along / period) - rng.uniform(0.3, 1.3)
    weight = np.clip(wave * rng.uniform(2, 12) + 0.5, 0, 1).astype(np.float32)
    return blend(first, second, weight), np.ones((height, width), np.float32)


def photo_crop(rng: Rng, photos: Sequence[Bytes], height: int, width: int) -> Floats:
    """A random crop of a random photo, (height, width, 3) float32; sometimes mirrored or tinted."""
    photo = photos[int(rng.integers(len(photos)))]
    rows, columns = photo.shape[:2]
    share = rng.uniform(0.35, 1.0) * min(rows / height, columns / width)
    crop_h, crop_w = max(8, int(height * share)), max(8, int(width * share))
    top, left = rng.integers(0, rows - crop_h + 1), rng.integers(0, columns - crop_w + 1)
    crop = photo[top : top + crop_h, left : left + crop_w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    method = cv2.INTER_AREA if share > 1 else cv2.INTER_LINEAR
    picture = cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=method).astype(np.float32) / 255
    if rng.random() < 0.5:
        picture = np.clip(picture * rng.uniform(0.75, 1.2, 3).astype(np.float32), 0, 1)
    return np.asarray(picture, np.float32)


def background(
    rng: Rng, kind: str, photos: Sequence[Bytes], height: int, width: int, base: Callable[[], Floats]
) -> tuple[Floats, Floats]:
    """Any ground but a mock-up.

    Args:
        kind: one of GROUNDS.
        photos: (h, w, 3) uint8 RGB pictures to crop from; without any, a photo is a gradient.
        base: gives the ground's main colour (3,), where it has one.
    Returns:
        colour (H, W, 3) float32 0..1 and shading (H, W) float32 around 1.
    """
    ones = np.ones((height, width), np.float32)
    if kind == "flat":
        return np.broadcast_to(base(), (height, width, 3)).astype(np.float32), ones
    if kind == "garment":
        return fabric(rng, height, width, base())
    if kind == "paper":
        return paper(rng, height, width)
    if kind == "wood":
        return wood(rng, height, width)
    if kind == "pattern":
        if rng.random() < 0.35:
            return checkerboard(rng, height, width), ones
        return pattern(rng, height, width, base())
    if kind == "photo" and photos:
        picture = photo_crop(rng, photos, height, width)
        if rng.random() < 0.75:  # out of focus behind the design
            picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.8, 6) * width / 384), np.float32)
        return picture, ones
    return blend(base(), base(), gradient(rng, height, width)), ones
