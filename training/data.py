"""Pairs of a picture and its exact alpha: a design on something, as it comes from a scanner, a shop or a phone.

Seeded: sample number i of a seed is always the same picture, on any number of workers. The alpha is known exactly,
because the design was drawn before it was laid on its background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from training.assets import CACHE, TRAIN
from training.backgrounds import Bytes, Floats, Rng, background, turned_noise
from training.designs import Assets, design, outlined, place

#: Width / height of the pictures drawn; the network sees all of them squashed to a square.
ASPECTS = (1.0, 1.0, 0.833, 0.8, 0.75, 1.25, 1.33, 0.67)
#: ImageNet's statistics, RGB, of 0..1 values.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


@dataclass(frozen=True)
class Sample:
    """A picture and its alpha."""

    #: (H, W, 3) uint8 RGB.
    image: Bytes
    #: (H, W) uint8, 0 background, 255 design.
    alpha: Bytes
    #: Kind of background.
    kind: str


def load_assets(split: str = TRAIN, cache: Path = CACHE) -> Assets:
    """Map the rendered artwork of a split into memory and read its photos.

    Raises:
        FileNotFoundError: `python -m training.assets` has not been run.
    """
    colour = [np.load(path, mmap_mode="r") for path in sorted((cache / "art").glob(f"{split}_c_*.npy"))]
    mono = [np.load(path, mmap_mode="r") for path in sorted((cache / "art").glob(f"{split}_m_*.npy"))]
    photos = [np.asarray(Image.open(path)) for path in sorted((cache / "photos").glob(f"{split}_*.jpg"))]
    fonts = sorted((cache / "fonts").glob(f"{split}_*.woff"))
    if not colour or not fonts:
        raise FileNotFoundError(f"no {split} assets in {cache}; run: python -m training.assets")
    return Assets(colour, mono, photos, fonts)


def drawn_assets(seed: int = 0, count: int = 12, side: int = 96) -> Assets:
    """Simple shapes in two colours, for tests: needs no fetched file."""
    rng = np.random.default_rng(seed)
    art = np.zeros((count, side, side, 4), np.uint8)
    for picture in art:
        for _ in range(3):
            centre = (int(rng.uniform(0.3, 0.7) * side), int(rng.uniform(0.3, 0.7) * side))
            colour = (*(int(part) for part in rng.integers(0, 256, 3)), 255)
            cv2.circle(picture, centre, int(rng.uniform(0.1, 0.3) * side), colour, -1)
    return Assets(colour=[art], mono=[], photos=[], fonts=[])


def unreadable(canvas: Floats, colour: Floats) -> float:
    """How much of a design can't be told from its background, 0..1; above about 0.3 a sample has no right answer.

    White art on white paper is not there. The largest of three shares of opaque pixels that look just like the
    background behind them: of the whole design, of its outline (it may be white inside, but its edge must show), and
    half of the worst separate element's (each word must be legible by itself).
    """
    opaque = canvas[..., 3] > 0.7
    if not opaque.any():
        return 1.0
    near = np.abs(canvas[..., :3] - colour * canvas[..., 3:]).max(axis=2) < 0.09
    inside = float(near[opaque].mean())
    edge = opaque & (cv2.erode(opaque.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0)
    outline = float(near[edge].mean()) if edge.any() else 0.0
    # Neighbouring letters are joined first: a single letter may be lost, a word may not.
    joined = cv2.dilate(opaque.astype(np.uint8), np.ones((5, 15), np.uint8))
    _, labels = cv2.connectedComponents(joined)
    sizes = np.bincount(labels[opaque])
    lost = np.bincount(labels[opaque], weights=near[opaque]) / np.maximum(sizes, 1)
    worst = float(lost[sizes > 0.002 * opaque.size].max(initial=0.0))
    return max(inside, 1.2 * outline, 0.5 * worst)


def compose(rng: Rng, assets: Assets, height: int, width: int) -> Sample:
    """One sample, before any camera or file damage.

    Args:
        height, width: size of the picture, pixels.
    """
    canvas = design(rng, assets, height, width)
    while float((canvas[..., 3] > 0.5).mean()) < 0.015:  # nothing was left of it
        canvas = design(rng, assets, height, width)
    for attempt in range(6):
        colour, shading, kind = background(rng, assets.photos, height, width)
        if unreadable(canvas, colour) < 0.20:
            break
        if attempt == 3:
            canvas = outlined(rng, canvas, rng.uniform(3, 7) * max(height, width) / 384)
    alpha = canvas[..., 3:]
    if rng.random() < (0.3 if kind in ("photo", "wood", "paper", "gradient") else 0.12):
        colour = colour * (1 - cast_shadow(rng, canvas[..., 3])[..., None])
    if kind in ("fabric", "paper"):
        # Ink follows the cloth: folds shade both, and a little of the weave shows through.
        ink_shading = 1 + (shading - 1) * np.float32(rng.uniform(0.3, 1.0))
        image = canvas[..., :3] * ink_shading[..., None] + colour * shading[..., None] * (1 - alpha)
    else:
        image = canvas[..., :3] + colour * (1 - alpha)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Sample(pixels, (np.clip(alpha[..., 0], 0, 1) * 255 + 0.5).astype(np.uint8), kind)


def cast_shadow(rng: Rng, alpha: Floats) -> Floats:
    """A soft dark shadow of the design, (H, W) float32 opacity; it belongs to the background."""
    scale = max(alpha.shape) / 384
    move = np.array([[1, 0, rng.normal(0, 5) * scale], [0, 1, rng.uniform(0, 9) * scale]], np.float32)
    shadow = cv2.warpAffine(alpha, move, (alpha.shape[1], alpha.shape[0]))
    shadow = cv2.GaussianBlur(shadow, (0, 0), rng.uniform(1.5, 9) * scale)
    return np.asarray(shadow * np.float32(rng.uniform(0.15, 0.6)), np.float32)


def damage(rng: Rng, sample: Sample) -> Sample:
    """What cameras and files do to a picture: light, blur, noise, JPEG. The alpha stays as it is."""
    image = sample.image
    if rng.random() < 0.35:
        light = rng.uniform(0.75, 1.15) * rng.uniform(0.94, 1.06, 3)
        lifted = image.astype(np.float32) * light.astype(np.float32) + np.float32(rng.uniform(-8, 12))
        if rng.random() < 0.4:
            height, width = image.shape[:2]
            lifted *= 1 + np.float32(rng.uniform(0.02, 0.08)) * turned_noise(rng, height, width, 250, 250)[..., None]
        image = np.clip(lifted, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.1)), np.uint8)
    if rng.random() < 0.25:
        grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 9))
        image = np.clip(image.astype(np.float32) + grain, 0, 255).astype(np.uint8)
    if rng.random() < 0.45:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))])
        image = cast(Bytes, cv2.imdecode(packed, cv2.IMREAD_COLOR))
    return Sample(np.asarray(image, np.uint8), sample.alpha, sample.kind)


def sample(assets: Assets, seed: int, index: int, size: int = 384) -> Sample:
    """Sample number `index` of a seed.

    Args:
        size: about the square root of the picture's area, pixels.
    """
    rng = np.random.default_rng((seed, index))
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    height, width = round(size / aspect**0.5), round(size * aspect**0.5)
    return damage(rng, compose(rng, assets, height, width))


def normalised(image: Bytes, size: int) -> NDArray[np.float32]:
    """(H, W, 3) uint8 RGB squashed to the network's (3, size, size) float32, ImageNet-normalised."""
    method = cv2.INTER_AREA if max(image.shape[:2]) > size else cv2.INTER_LINEAR
    squashed = cv2.resize(image, (size, size), interpolation=method).astype(np.float32) / 255
    return np.ascontiguousarray(((squashed - MEAN) / STD).transpose(2, 0, 1), np.float32)


class Pairs(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless training pairs: ((3, S, S) float32 normalised picture, (1, S, S) float32 alpha 0..1)."""

    def __init__(self, assets: Assets, seed: int, size: int, start: int = 0) -> None:
        """Begin at sample `start`, so that a resumed run does not see the same pictures again."""
        self.assets, self.seed, self.size, self.start = assets, seed, size, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        index, step = (self.start, 1) if worker is None else (self.start + worker.id, worker.num_workers)
        while True:
            pair = sample(self.assets, self.seed, index, self.size)
            target = cv2.resize(pair.alpha, (self.size, self.size), interpolation=cv2.INTER_AREA)
            yield (
                torch.from_numpy(normalised(pair.image, self.size)),
                torch.from_numpy(target[None].astype(np.float32) / 255),
            )
            index += step


__all__ = ["Assets", "Pairs", "Sample", "drawn_assets", "load_assets", "normalised", "place", "sample"]
