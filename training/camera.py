"""What happens to a print between shirt and file: tilt, soft folds, blur, light, noise, JPEG.

Geometry and blur are done to the design and its ground before they are put together, so the alpha stays exact. Light,
noise and compression come after and change no alpha.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from training.backgrounds import Bytes, Floats, Rng, noise, turned_noise


def tilted(rng: Rng, layers: tuple[Floats, ...], strength: float) -> tuple[Floats, ...]:
    """The layers seen a little from the side: the same perspective for all of them, borders continued.

    Args:
        layers: each (H, W, C) or (H, W) float32.
        strength: how far a corner moves, share of the picture.
    """
    height, width = layers[0].shape[:2]
    corners = np.array(((0, 0), (width, 0), (width, height), (0, height)), np.float32)
    moved = corners + (rng.uniform(-strength, strength, (4, 2)) * (width, height)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, moved)
    return tuple(_warped(layer, matrix, (width, height), index == 0) for index, layer in enumerate(layers))


def _warped(layer: Floats, matrix: cv2.typing.MatLike, size: tuple[int, int], is_design: bool) -> Floats:
    border = cv2.BORDER_CONSTANT if is_design else cv2.BORDER_REFLECT_101
    return np.asarray(cv2.warpPerspective(layer, matrix, size, borderMode=border), np.float32)


def folded(rng: Rng, canvas: Floats) -> Floats:
    """A design on soft cloth: its lines waver by a few pixels."""
    height, width = canvas.shape[:2]
    scale = max(height, width) / 384
    reach = np.float32(rng.uniform(0.6, 2.6) * scale)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    cell = rng.uniform(60, 160) * scale
    x += reach * noise(rng, height, width, cell, cell)
    y += reach * noise(rng, height, width, cell, cell)
    return np.clip(cv2.remap(canvas, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), 0, 1)


def out_of_focus(rng: Rng, layers: tuple[Floats, ...], sigma: float) -> tuple[Floats, ...]:
    """The layers through a lens that is not quite sharp: a small disc (or Gaussian) of `sigma` pixels."""
    if rng.random() < 0.5:
        return tuple(np.asarray(cv2.GaussianBlur(layer, (0, 0), sigma), np.float32) for layer in layers)
    side = 2 * int(np.ceil(1.6 * sigma)) + 1
    axis = np.arange(side, dtype=np.float32) - side // 2
    disc = np.clip(1.6 * sigma + 0.5 - np.hypot(axis[None], axis[:, None]), 0, 1)
    disc /= disc.sum()
    return tuple(np.asarray(cv2.filter2D(layer, -1, disc), np.float32) for layer in layers)


def damaged(rng: Rng, image: Bytes, is_photo: bool) -> Bytes:
    """Light, white balance, vignette, noise and JPEG.

    Args:
        image: (H, W, 3) uint8 RGB.
        is_photo: a camera took it (more of everything); else it is a file from a drawing program.
    """
    height, width = image.shape[:2]
    if rng.random() < (0.6 if is_photo else 0.12):
        light = (rng.uniform(0.8, 1.12) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
        lifted = image.astype(np.float32) * light + np.float32(rng.uniform(-8, 10))
        if is_photo and rng.random() < 0.5:  # uneven light
            lifted *= 1 + np.float32(rng.uniform(0.02, 0.09)) * turned_noise(rng, height, width, 250, 250)[..., None]
        if is_photo and rng.random() < 0.4:  # darker corners
            y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
            lifted *= (1 - rng.uniform(0.05, 0.22) * (x * x + y * y) / 2).astype(np.float32)[..., None]
        image = np.clip(lifted, 0, 255).astype(np.uint8)
    if rng.random() < (0.45 if is_photo else 0.06):
        grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 8))
        image = np.clip(image.astype(np.float32) + grain, 0, 255).astype(np.uint8)
    if rng.random() < 0.45:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 97))])
        image = cast(Bytes, cv2.imdecode(packed, cv2.IMREAD_COLOR))
    return np.asarray(image, np.uint8)
