"""Pairs of a picture and its exact alpha: a design on something, as it comes from a scanner, a shop or a phone.

Seeded: sample number i of a seed is always the same picture, on any number of workers. The alpha is known exactly,
because the design was drawn before it was laid on its background.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.assets import CACHE
from training.backgrounds import (
    FOCUS_GROUNDS,
    GROUNDS,
    Bytes,
    Floats,
    Rng,
    background,
    garment_colour,
    plain_colour,
    random_colour,
)
from training.camera import damaged, folded, out_of_focus, tilted
from training.contrast import (
    FAINT_CONTRAST,
    MIN_CONTRAST,
    MIN_SOFT_CONTRAST,
    contour_colours,
    legibility,
    stands_out,
    without_invisible,
)
from training.designs import Assets, outlined
from training.kinds import KINDS
from training.mockups import Stage
from training.split import TRAIN

#: Kinds whose edge is soft: a border or a cast shadow would make something else of them.
SOFT_KINDS = ("glow", "smoke", "transparent")
#: Width / height of the pictures drawn; the network sees all of them squashed to a square.
ASPECTS = (1.0, 1.0, 0.833, 0.8, 0.75, 1.25, 1.33, 0.67)
#: Sizes in which pictures are drawn on a card and in runs that go further, over the network's: small ones come enlarged
#: with their noise.
ZOOMS = (0.5, 0.6, 0.7, 0.8, 1.0, 1.0, 1.25)
#: Share of faint pictures (`sample`) in runs that go further.
FAINT_SHARE = 0.3
#: Share of pictures with hard ink in the same runs that have a wide border, and its width over the longer side of the
#: picture (on a mock-up, of the print zone): it closes small counters and gaps in its own colour, where a network that
#: has only seen ground in them cuts a hole.
BORDERED_SHARE, BORDER_WIDTHS = 0.25, (0.01, 0.035)
#: How far the ground of a faint picture is from a colour of its design, each channel, 0..1.
NEAR_GROUND = 0.22
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
    #: Kind of art, a key of KINDS.
    kind: str
    #: Kind of background, a key of GROUNDS.
    ground: str


def load_assets(split: str = TRAIN, cache: Path = CACHE) -> Assets:
    """Map the rendered artwork of a split into memory and read its photos.

    Raises:
        FileNotFoundError: `python -m training.assets` has not been run.
    """
    pools: dict[str, dict[str, list[Bytes]]] = {"c": {}, "m": {}}
    for path in sorted((cache / "art").glob(f"{split}_[cm]_*.npy")):
        colours, kind = path.stem.removeprefix(f"{split}_").split("_", 1)
        if ".unfinished" not in path.name:
            kind = next(name for name in ("icon", "emoji", "illustration", "thin_lines") if kind.startswith(name))
            pools[colours].setdefault(kind, []).append(np.load(path, mmap_mode="r"))
    photos = [np.asarray(Image.open(path)) for path in sorted((cache / "photos").glob(f"{split}_*.jpg"))]
    if split == TRAIN:
        photos += [recoloured(photo, number) for number, photo in enumerate(photos * 2)]
    fonts = sorted((cache / "fonts").glob(f"{split}_*.woff"))
    if not pools["c"] or not fonts:
        raise FileNotFoundError(f"no {split} assets in {cache}; run: python -m training.assets")
    return Assets(pools["c"], pools["m"], photos, fonts)


def recoloured(photo: Bytes, number: int) -> Bytes:
    """Another photo made of one, (H, W, 3) uint8: turned, channels exchanged, another tone, more or less colour.

    Few photos may be used; what matters of a ground is that its scene is no design, whatever its colours.
    """
    rng = np.random.default_rng((97, number))
    turned = np.rot90(photo, int(rng.integers(4)))[..., rng.permutation(3)].astype(np.float32) / 255
    toned = turned ** np.exp(rng.normal(0, 0.35, 3)).astype(np.float32)
    grey = toned.mean(axis=2, keepdims=True)
    tint = rng.uniform(0.75, 1.0, 3).astype(np.float32)
    return _bytes((grey + (toned - grey) * np.float32(rng.uniform(0.3, 1.6))) * tint)


def drawn_assets(seed: int = 0, count: int = 12, side: int = 96) -> Assets:
    """Simple shapes in two colours, for tests: needs no fetched file."""
    rng = np.random.default_rng(seed)
    art = np.zeros((count, side, side, 4), np.uint8)
    for picture in art:
        for _ in range(3):
            centre = (int(rng.uniform(0.3, 0.7) * side), int(rng.uniform(0.3, 0.7) * side))
            colour = (*(int(part) for part in rng.integers(0, 256, 3)), 255)
            cv2.circle(picture, centre, int(rng.uniform(0.1, 0.3) * side), colour, -1)
    return Assets(colour={"icon": [art]}, mono={}, photos=[], fonts=[])


class Layers(NamedTuple):
    """A picture before it is put together."""

    #: (H, W, 4) float32 0..1, premultiplied: the design with the light of its cloth on it.
    canvas: Floats
    #: (H, W, 3) float32 0..1: the ground as lit, shadows included.
    ground: Floats


def put_together(layers: Layers) -> tuple[Bytes, Bytes]:
    """Picture (H, W, 3) uint8 and alpha (H, W) uint8: the design over its ground."""
    picture = layers.canvas[..., :3] + layers.ground * (1 - layers.canvas[..., 3:])
    return _bytes(picture), _bytes(layers.canvas[..., 3])


def _bytes(values: Floats) -> Bytes:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _any(rng: Rng, shares: dict[str, float]) -> str:
    names, weights = list(shares), np.array(list(shares.values()))
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def composed(
    rng: Rng, assets: Assets, height: int, width: int, kind: str, ground: str, faint: bool = False,
    bordered: bool = False,
) -> Layers | None:  # fmt: skip
    """One design of a kind, tried on up to three grounds; None when it can't be told from any of them.

    Args:
        faint: hard ink may be nearer to its ground's colour; a ground that has one colour is drawn near to the ink's.
        bordered: hard ink gets a wide border.
    """
    faint = faint and kind not in SOFT_KINDS
    least = FAINT_CONTRAST if faint else MIN_CONTRAST
    stage = Stage.draw(rng, height, width) if ground == "mockup_photo" else None
    left, top, across, down = stage.zone if stage else (0, 0, width, height)
    canvas = np.zeros((height, width, 4), np.float32)
    art = KINDS[kind].make(rng, assets, down, across)
    if bordered and kind not in SOFT_KINDS:
        colour = random_colour(rng) if rng.random() < 0.6 else None
        art = outlined(rng, art, rng.uniform(*BORDER_WIDTHS) * max(down, across), colour)
    canvas[top : top + down, left : left + across] = art
    draw = plain_colour if ground in ("flat", "gradient", "pattern") else garment_colour
    base = _base_colour(rng, canvas, draw, MIN_SOFT_CONTRAST + 0.05 if kind in SOFT_KINDS else least + 0.05, faint)
    for attempt in range(3):
        if float((canvas[..., 3] > 0.3).mean()) < 0.01:  # nothing is left of it
            return None
        if stage:
            colour, shading = stage.dressed(rng, assets.photos, base)
        else:
            colour, shading = background(rng, ground, assets.photos, height, width, base)
        layers = _lit(rng, canvas, colour, shading, kind, ground)
        if legibility(*layers, least).is_fair and float((layers.canvas[..., 3] > 0.3).mean()) >= 0.01:
            return layers
        if attempt == 0 and kind not in SOFT_KINDS:  # what a printer does: a border round it
            canvas = outlined(rng, canvas, rng.uniform(3, 6) * max(height, width) / 384)
    return None


def _lit(rng: Rng, canvas: Floats, colour: Floats, shading: Floats, kind: str, ground: str) -> Layers:
    """Lay a design on a ground as a camera sees both: folds, tilt, focus, light and shadow, in this order."""
    scale = max(shading.shape) / 384
    is_cloth = ground in ("garment", "mockup_photo")
    if is_cloth and rng.random() < 0.5:
        canvas = folded(rng, canvas)
    if ground not in ("flat", "gradient", "pattern") and rng.random() < 0.4:
        canvas, colour, shading = tilted(rng, (canvas, colour, shading), rng.uniform(0.01, 0.06))
    if rng.random() < (0.35 if is_cloth or ground == "photo" else 0.15):
        canvas, colour, shading = out_of_focus(rng, (canvas, colour, shading), rng.uniform(0.4, 1.3) * scale)
    lit = colour * shading[..., None]
    if kind not in SOFT_KINDS and rng.random() < (0.25 if ground in ("photo", "wood", "paper", "gradient") else 0.08):
        lit = lit * (1 - cast_shadow(rng, canvas[..., 3])[..., None])
    if is_cloth or ground == "paper":  # ink follows the cloth: folds shade both, a little of the weave shows through
        ink = 1 + (shading - 1) * np.float32(rng.uniform(0.3, 1.0))
        canvas = np.dstack((np.minimum(canvas[..., :3] * ink[..., None], canvas[..., 3:]), canvas[..., 3]))
    lit = np.clip(lit, 0, 1).astype(np.float32)
    return Layers(without_invisible(np.asarray(canvas, np.float32), lit), lit)


def _base_colour(
    rng: Rng, canvas: Floats, draw: Callable[[Rng], Floats], least: float, near: bool = False
) -> Callable[[], Floats]:
    """Draws ground colours that the design stands out from (the last one after 12 tries, whatever it is).

    Args:
        near: each near to one of the design's colours.
    """
    colours = contour_colours(rng, canvas)
    if near and len(colours):

        def draw(rng: Rng) -> Floats:
            shift = rng.uniform(-NEAR_GROUND, NEAR_GROUND, 3)
            return np.clip(colours[rng.integers(len(colours))] + shift, 0, 1).astype(np.float32)

    def base() -> Floats:
        for _ in range(12):
            colour = draw(rng)
            if stands_out(colours, colour, least):
                break
        return colour

    return base


def cast_shadow(rng: Rng, alpha: Floats) -> Floats:
    """A soft dark shadow of the design, (H, W) float32 opacity; it belongs to the background."""
    scale = max(alpha.shape) / 384
    move = np.array([[1, 0, rng.normal(0, 5) * scale], [0, 1, rng.uniform(0, 9) * scale]], np.float32)
    shadow = cv2.warpAffine(alpha, move, (alpha.shape[1], alpha.shape[0]))
    shadow = cv2.GaussianBlur(shadow, (0, 0), rng.uniform(1.5, 9) * scale)
    return np.asarray(shadow * np.float32(rng.uniform(0.15, 0.6)), np.float32)


def sample(
    assets: Assets, seed: int, index: int, size: int = 384, kind: str | None = None, ground: str | None = None,
    focus: bool = False, faint: bool = False,
) -> Sample:  # fmt: skip
    """Sample number `index` of a seed.

    Args:
        size: about the square root of the picture's area, pixels.
        kind: the kind of art (any, by its share, when missing).
        ground: the kind of background, likewise.
        focus: what is drawn of its share has the shares of a run that works on what is hardest, and some have borders.
        faint: as `composed` has it.
    """
    rng = np.random.default_rng((seed, index))
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    height, width = round(size / aspect**0.5), round(size * aspect**0.5)
    kinds = {name: entry.focus if focus else entry.share for name, entry in KINDS.items()}
    grounds = FOCUS_GROUNDS if focus else GROUNDS
    layers = None
    while layers is None:  # what is not legible is drawn again, with other art on another ground of the same kinds
        art = kind or _any(rng, kinds)
        under = ground or _any(rng, grounds)
        if art != "photo_cut" or under != "photo" or (kind and ground):  # a photo on a photo is a riddle
            bordered = focus and rng.random() < BORDERED_SHARE
            layers = composed(rng, assets, height, width, art, under, faint, bordered)
    image, alpha = put_together(layers)
    return Sample(damaged(rng, image, under not in ("flat", "gradient", "pattern")), alpha, art, under)


def zoomed(rng: Rng, size: int) -> int:
    """One of the sizes in which pictures for a network of this size are drawn, pixels."""
    return round(size * ZOOMS[rng.integers(len(ZOOMS))])


def squash_picture(image: Bytes, size: int) -> Bytes:
    """(H, W, 3) uint8 squashed to the network's square, (size, size, 3)."""
    method = cv2.INTER_AREA if max(image.shape[:2]) > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)


def squash_alpha(alpha: Bytes, size: int) -> Bytes:
    """(H, W) uint8 squashed to the network's square, (size, size)."""
    return np.asarray(cv2.resize(alpha, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def normalised(image: Bytes, size: int) -> NDArray[np.float32]:
    """(H, W, 3) uint8 RGB squashed to the network's (3, size, size) float32, ImageNet-normalised."""
    squashed = squash_picture(image, size).astype(np.float32) / 255
    return np.ascontiguousarray(((squashed - MEAN) / STD).transpose(2, 0, 1), np.float32)


def training_pairs(
    assets: Assets, seed: int, size: int, start: int = 0, step: int = 1, focus: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless pairs: (3, S, S) float32 normalised picture, (1, S, S) float32 alpha 0..1.

    Args:
        start: number of the first sample, so that a resumed run does not see the same pictures again.
        step: how many samples lie between two of these; as many processes can share a seed.
        focus: more of what is hardest, some faint, some with borders, and of several sizes, enlarged or reduced to S.
    """
    for index in itertools.count(start, step):
        rng = np.random.default_rng((seed, index, 1))
        drawn = zoomed(rng, size) if focus else size
        pair = sample(assets, seed, index, drawn, focus=focus, faint=focus and rng.random() < FAINT_SHARE)
        target = squash_alpha(pair.alpha, size)
        yield (
            torch.from_numpy(normalised(pair.image, size)),
            torch.from_numpy(target[None].astype(np.float32) / 255),
        )


__all__ = ["Assets", "Sample", "drawn_assets", "load_assets", "normalised", "sample", "training_pairs"]
