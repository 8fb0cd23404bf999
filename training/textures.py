"""Masks that take ink away: worn prints, halftones, cracks; and soft shapes: smoke, bubbles, washes.

Every mask is (H, W) float32, 0 nothing is printed, 1 full ink. Where it is 0 the ground shows, as it does in a letter's
counter: a hole is never painted in the ground's colour.
"""

from __future__ import annotations

import cv2
import numpy as np

from training.backgrounds import Floats, Rng, gradient, noise


def clouds(rng: Rng, height: int, width: int, cell: float, octaves: int = 3) -> Floats:
    """Noise of several grain sizes, (height, width), about -2..2; `cell` is the coarsest grain, pixels."""
    field = noise(rng, height, width, cell, cell)
    for octave in range(1, octaves):
        fine = max(1.5, cell / 2**octave)
        field += np.float32(0.55**octave) * noise(rng, height, width, fine, fine)
    return field


def worn(rng: Rng, height: int, width: int) -> Floats:
    """A print after many washes or a dry roller: specks, scratches or missing patches with crisp edges."""
    scale = max(height, width) / 384
    draw = rng.random()
    if draw < 0.45:  # specks, denser here and there
        field = noise(rng, height, width, 2.2 * scale, 2.2 * scale) + 0.8 * noise(rng, height, width, 50, 50)
        keep = np.clip((field + rng.uniform(0.9, 1.7)) * 3.5, 0, 1)
    elif draw < 0.75:  # cracked ink: thin lines where two fields are equal
        cell = rng.uniform(9, 22) * scale
        lines = np.abs(clouds(rng, height, width, cell, 2))
        keep = np.clip((lines - rng.uniform(0.04, 0.11)) * rng.uniform(12, 25) + 0.3, 0, 1)
        patches = np.clip((clouds(rng, height, width, 60 * scale) + rng.uniform(0.2, 1.2)) * 5, 0, 1)
        keep = np.minimum(keep, patches) if rng.random() < 0.4 else keep
    else:  # brush or roller: streaks along one axis
        long, short = rng.uniform(60, 160) * scale, rng.uniform(1.6, 4) * scale
        field = noise(rng, height, width, *((long, short) if rng.random() < 0.5 else (short, long)))
        keep = np.clip((field + rng.uniform(0.8, 1.5)) * 3, 0, 1)
    return np.asarray(keep, np.float32)


def halftone(rng: Rng, height: int, width: int, tone: Floats | None = None) -> Floats:
    """Dots, lines or a screen whose weight follows a tone.

    Args:
        tone: (H, W) 0..1, how much ink; a gradient when missing.
    """
    scale = max(height, width) / 384
    if tone is None:
        tone = gradient(rng, height, width)
        tone = (tone * rng.uniform(0.9, 1.5) + rng.uniform(-0.1, 0.15)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period = np.float32(rng.uniform(7, 15) * scale)
    angle = rng.choice((0.0, np.pi / 4, np.pi / 12, 5 * np.pi / 12))
    across = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) * (2 * np.pi / period)
    along = (y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))) * (2 * np.pi / period)
    screen = 0.5 + 0.5 * np.cos(across) if rng.random() < 0.25 else 0.5 + 0.25 * (np.cos(across) + np.cos(along))
    # One pixel of softness at a dot's edge, whatever its period.
    return np.clip((screen - 1 + tone) * period * 0.7 + 0.5, 0, 1).astype(np.float32)


def smoke(rng: Rng, height: int, width: int) -> Floats:
    """A drifting cloud, thick near the middle and fading towards the frame, at most 0.95."""
    short = min(height, width)
    field = clouds(rng, height, width, short * rng.uniform(0.25, 0.45), 4)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    centre = (width * rng.uniform(0.4, 0.6), height * rng.uniform(0.4, 0.6))
    distance = np.hypot((x - centre[0]) / width, (y - centre[1]) / height).astype(np.float32)
    body = np.clip(1.25 - distance / rng.uniform(0.3, 0.42), 0, 1)
    return np.clip((0.45 + 0.35 * field) * body * 1.5, 0, 0.95).astype(np.float32)


def wash(rng: Rng, height: int, width: int) -> Floats:
    """A watercolour blot: ragged edge, darker rim, uneven inside."""
    short = min(height, width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot((x - width / 2) / (0.42 * width), (y - height / 2) / (0.42 * height)).astype(np.float32)
    field = 1 - distance + 0.16 * clouds(rng, height, width, short * 0.3)
    inside = np.clip(field * short * 0.06, 0, 1)
    rim = np.exp(-((field - 0.04) ** 2) / 0.003)
    pigment = 0.62 + 0.12 * clouds(rng, height, width, short * 0.25) + 0.25 * rim
    return (inside * np.clip(pigment, 0.35, 0.97)).astype(np.float32)


def bubble(side: int) -> tuple[Floats, Floats]:
    """A soap bubble: opacity (side, side), nearly clear inside with a strong rim, and its white highlight."""
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    radius = np.hypot(axis[None], axis[:, None]) / 0.97
    edge = np.clip((1 - radius) * side * 0.5, 0, 1)
    body = edge * np.clip(0.16 + 0.75 * radius**5, 0, 0.92)
    shine = np.exp(-(((axis[None] + 0.38) / 0.20) ** 2 + ((axis[:, None] + 0.42) / 0.13) ** 2))
    return np.asarray(body, np.float32), np.asarray(edge * shine * 0.95, np.float32)


def blurred(mask: Floats, sigma: float) -> Floats:
    """Gaussian blur; wide ones are done at a quarter of the size, which looks the same and costs a tenth."""
    if sigma < 6:
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma), np.float32)
    height, width = mask.shape[:2]
    small = cv2.resize(mask, (max(2, width // 4), max(2, height // 4)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / 4)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
