"""Flat prints as a scanner or a phone sees them: light, paper, blur, grain and JPEG, made by code."""

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scan:
    """How a print was taken in.

    Attributes:
        light: how much darker (0-255) the far corner is. grain: standard deviation of each pixel's noise (0-255).
        texture: likewise of the paper, in patches of some 15 px. blur: of the lens, in pixels. quality: of the JPEG.
        paper: its colour in full light.
    """

    light: float = 0
    grain: float = 0
    texture: float = 0
    blur: float = 0
    quality: int = 85
    paper: tuple[int, int, int] = (255, 255, 255)


SCANS = {
    "jpeg": Scan(quality=70),
    "flatbed": Scan(light=6, grain=1.5, texture=1, blur=0.7, quality=90, paper=(246, 241, 230)),
    "old paper": Scan(light=18, grain=3, texture=3, blur=0.8, paper=(246, 241, 230)),
    "phone": Scan(light=45, grain=4, texture=3, blur=1.2, quality=75, paper=(246, 241, 230)),
    "sensor grain": Scan(light=10, grain=13, blur=0.8, quality=95),
    "rough paper": Scan(light=15, grain=7, texture=6, blur=1, quality=60, paper=(246, 241, 230)),
}


def scanned(rgb: Array, scan: Scan, seed: int = 0) -> Array:
    """A print of (H, W, 3) uint8 artwork, taken in: (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    height, width = rgb.shape[:2]
    x = rgb.astype(np.float32) / 255 * np.array(scan.paper, np.float32)
    if scan.blur:
        x = cv2.GaussianBlur(x, (0, 0), scan.blur).astype(np.float32)
    across, down = np.arange(width) / width, np.arange(height)[:, None] / height
    x *= (1 - scan.light / 255 * (across + down**2) / 2)[..., None]
    patches = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), 6)
    x += scan.texture * (patches / patches.std())[..., None] + rng.normal(0, 1, x.shape) * scan.grain
    file = io.BytesIO()
    Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=scan.quality)
    return np.array(Image.open(file))
