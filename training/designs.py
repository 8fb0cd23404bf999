"""The pieces that designs are made of: artwork, lettering, badges, outlines, on transparent canvases.

A canvas is (H, W, 4) float32, colours premultiplied by alpha, all in 0..1: premultiplied colours can be resized,
rotated and blurred without dark or white fringes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.backgrounds import Bytes, Floats, Rng, blend, gradient, photo_crop, plain_colour, random_colour

WORDS = (
    "WILD", "SUMMER", "GOOD VIBES", "COFFEE", "1987", "ROCK", "DREAM", "LOVE", "NEW YORK", "PARIS", "OCEAN", "CAMP",
    "No. 7", "HELLO", "SUNSET", "BORN FREE", "Ride", "Adventure", "Stay Wild", "Best Dad", "Mountains", "Team", "Surf",
    "Pizza", "CAT MOM", "EST. 2024", "CLUB", "RUN", "Happy", "Lucky", "Forever", "No Rain", "Let's go", "Fresh",
    "PEACE", "STUDIO", "Bloom", "KING", "Queen", "Game On", "Be Kind", "The North", "Limited", "ORIGINAL", "Vintage",
    "84", "&",
)  # fmt: skip


@dataclass(frozen=True)
class Assets:
    """What designs are made from; every field but `colour` may be empty."""

    #: Kind of art ("icon", "emoji", "illustration") to arrays (N, S, S, 4) uint8 RGBA, colours not premultiplied.
    colour: Mapping[str, Sequence[Bytes]]
    #: The same for one-colour art ("icon", "thin_lines"): only its alpha counts.
    mono: Mapping[str, Sequence[Bytes]]
    #: (h, w, 3) uint8 RGB.
    photos: Sequence[Bytes]
    #: Font files; without any, Pillow's own font is used.
    fonts: Sequence[Path]


def over(canvas: Floats, layer: Floats) -> None:
    """Lay a premultiplied layer over a canvas of the same size, in place."""
    canvas *= 1 - layer[..., 3:]
    canvas += layer


def fill(rng: Rng, mask: Floats, photos: Sequence[Bytes] = ()) -> Floats:
    """Paint a (H, W) mask with a colour, a gradient or (rarely) a photo: premultiplied (H, W, 4)."""
    height, width = mask.shape
    draw = rng.random()
    if draw < 0.62:
        colour = random_colour(rng) if rng.random() < 0.6 else plain_colour(rng)
        paint = np.broadcast_to(colour, (height, width, 3))
    elif draw < 0.93 or not photos:
        paint = blend(random_colour(rng), random_colour(rng), gradient(rng, height, width))
    else:
        paint = photo_crop(rng, photos, height, width)
    return np.dstack((paint * mask[..., None], mask)).astype(np.float32)


def _drawn(rng: Rng, pools: Sequence[Bytes]) -> Bytes:
    # By number of artworks, so that a small set's few pictures don't come up all the time.
    sizes = np.array([len(pool) for pool in pools], np.float64) ** 0.75
    pool = pools[rng.choice(len(pools), p=sizes / sizes.sum())]
    pixels = pool[rng.integers(len(pool))]
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def silhouette(rng: Rng, assets: Assets, kind: str = "icon") -> Floats:
    """The shape of a one-colour icon (a filled shape without any), (S, S) float32 0..1."""
    pools = assets.mono.get(kind) or assets.mono.get("icon")
    if not pools:
        return shape_mask(rng, 288)
    return np.asarray(_drawn(rng, pools)[..., 3], np.float32) / np.float32(255)


def artwork(rng: Rng, assets: Assets, kind: str | None = None) -> Floats:
    """One piece of art, premultiplied (S, S, 4).

    Args:
        kind: "icon", "emoji" or "illustration"; any when missing, and where there is none of it.
    """
    if kind in (None, "icon") and assets.mono and rng.random() < (0.5 if kind else 0.2):
        return fill(rng, silhouette(rng, assets))
    pools = assets.colour.get(kind or "") or [pool for pools in assets.colour.values() for pool in pools]
    layer: Floats = _drawn(rng, pools).astype(np.float32) / np.float32(255)
    layer[..., :3] *= layer[..., 3:]
    if rng.random() < 0.25:  # another colour scheme
        layer[..., :3] = layer[..., rng.permutation(3)]
    return layer


@lru_cache(maxsize=64)
def _font(path: Path | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


def text_mask(rng: Rng, fonts: Sequence[Path], text: str, size: int = 96) -> Floats:
    """Lettering, trimmed: (h, w) float32 0..1; sometimes bent along an arc."""
    font = _font(fonts[int(rng.integers(len(fonts)))] if fonts else None, size)
    left, top, right, bottom = font.getbbox(text)
    margin = 6
    picture = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin))
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=255, font=font)
    mask: Floats = np.asarray(picture, np.float32) / np.float32(255)
    if len(text) > 4 and rng.random() < 0.3:
        mask = _bend(mask, rng.uniform(0.15, 0.5) * rng.choice((-1, 1)))
    return mask


def _bend(mask: Floats, amount: float) -> Floats:
    """Bend a line of text: the middle moves up (or down) by `amount` of its width."""
    height, width = mask.shape
    rise = abs(amount) * width * 0.5
    tall = int(height + rise) + 1
    y, x = np.mgrid[0:tall, 0:width].astype(np.float32)
    curve = rise * (1 - (2 * x / width - 1) ** 2)
    shift = rise - curve if amount > 0 else curve
    return np.asarray(cv2.remap(mask, x, (y - shift).astype(np.float32), cv2.INTER_LINEAR), np.float32)


def lettering(rng: Rng, assets: Assets) -> Floats:
    """One or two words in one colour or gradient, sometimes outlined or with a hard shadow: premultiplied (h, w, 4)."""
    text = " ".join(rng.choice(WORDS, rng.choice((1, 1, 1, 2))))
    mask = text_mask(rng, assets.fonts, text)
    layer = fill(rng, mask, assets.photos)
    draw = rng.random()
    if draw < 0.25:
        layer = outlined(rng, np.pad(layer, ((12, 12), (12, 12), (0, 0))), rng.uniform(3, 9))
    elif draw < 0.38:  # letters as blocks, seen from the side
        depth = int(rng.integers(3, 12))
        layer = np.pad(layer, ((2, depth + 2), (depth + 2, depth + 2), (0, 0)))
        colour, side = random_colour(rng), int(rng.choice((-1, 1)))
        shadow = layer[..., 3].copy()
        for step in range(1, depth):
            shadow = np.maximum(shadow, np.roll(layer[..., 3], (step, side * step), (0, 1)))
        block = np.dstack((shadow[..., None] * colour, shadow)).astype(np.float32)
        over(block, layer)
        layer = block
    elif draw < 0.46:  # hollow letters: the inside shows the ground
        ring = np.clip(mask - cv2.erode(mask, np.ones((5, 5), np.uint8)), 0, 1)
        layer = fill(rng, np.asarray(ring, np.float32))
    return layer


def outlined(rng: Rng, layer: Floats, width: float, colour: Floats | None = None) -> Floats:
    """A layer with a border of `width` pixels around its opaque parts, as on a sticker."""
    outside = (layer[..., 3] < 0.5).astype(np.uint8)
    if outside.all():
        return layer
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, 5)
    border = np.clip(width + 0.5 - distance, 0, 1).astype(np.float32)
    if colour is None:
        colour = np.ones(3, np.float32) if rng.random() < 0.6 else random_colour(rng)
    result = np.dstack((border[..., None] * colour, border)).astype(np.float32)
    over(result, layer)
    return result


def shape_mask(rng: Rng, side: int) -> Floats:
    """A filled shape (disc, rounded box, shield, star, blob, brush strokes), (side, side) float32 0..1."""
    scale = 2
    big = np.zeros((side * scale, side * scale), np.uint8)
    full = side * scale
    kind = rng.integers(7)
    if kind in (0, 6):
        cv2.circle(big, (full // 2, full // 2), int(full * 0.48), 255, -1)
        if kind == 6:  # a ring: its inside is the ground
            for share in (rng.uniform(0.25, 0.44), rng.uniform(0.1, 0.2)):
                cv2.circle(big, (full // 2, full // 2), int(full * share), 0 if share > 0.2 else 255, -1)
    elif kind == 1:
        tall = rng.uniform(0.3, 0.48) * full
        radius = int(rng.uniform(0, 0.25) * tall) + 1
        y0, y1 = int(full / 2 - tall), int(full / 2 + tall)
        cv2.rectangle(big, (radius, y0 + radius), (full - radius, y1 - radius), 255, -1)
        round_brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius - 1, 2 * radius - 1))
        big = np.asarray(cv2.dilate(big, round_brush), np.uint8)
    elif kind in (2, 3):
        points = rng.integers(5, 24) if kind == 3 else rng.integers(3, 8)
        angle = np.arange(2 * points) * np.pi / points + rng.uniform(0, 6)
        radius_out = np.where(np.arange(2 * points) % 2, rng.uniform(0.45, 0.93), 1) if kind == 3 else 1.0
        corners = full / 2 + 0.48 * full * radius_out * np.stack((np.cos(angle), np.sin(angle)))
        cv2.fillPoly(big, [corners.T.astype(np.int32)], 255)
    elif kind == 4:
        small = cv2.resize(rng.standard_normal((6, 6), dtype=np.float32), (full, full), interpolation=cv2.INTER_CUBIC)
        y, x = np.mgrid[-1 : 1 : full * 1j, -1 : 1 : full * 1j]
        big = (255 * (small * 0.25 + 0.75 > np.hypot(x, y))).astype(np.uint8)
    else:
        for _ in range(rng.integers(3, 9)):
            level = int(rng.uniform(0.15, 0.85) * full)
            ends = (int(rng.uniform(0.05, 0.3) * full), int(rng.uniform(0.7, 0.95) * full))
            tilt = int(rng.normal(0, 0.04) * full)
            cv2.line(big, (ends[0], level), (ends[1], level + tilt), 255, int(rng.uniform(0.05, 0.2) * full))
    return np.asarray(cv2.resize(big, (side, side), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)


def badge(rng: Rng, assets: Assets) -> Floats:
    """A filled shape that carries art, premultiplied (S, S, 4); one in four has the art knocked out of it."""
    side = 320
    mask = shape_mask(rng, side)
    spot, extent = (side * rng.uniform(0.45, 0.55), side * rng.uniform(0.45, 0.55)), side * rng.uniform(0.4, 0.7)
    if rng.random() < 0.25:  # knocked out: the ground shows through
        hole = np.zeros((side, side, 4), np.float32)
        shape = silhouette(rng, assets) if rng.random() < 0.5 else text_mask(rng, assets.fonts, str(rng.choice(WORDS)))
        place(hole, np.dstack((np.zeros((*shape.shape, 3), np.float32), shape)), spot, extent)
        return fill(rng, np.asarray(mask * (1 - hole[..., 3]), np.float32))
    layer = fill(rng, mask)
    place(layer, lettering(rng, assets) if rng.random() < 0.35 else artwork(rng, assets), spot, extent)
    if rng.random() < 0.35:
        layer = outlined(rng, np.pad(layer, ((12, 12), (12, 12), (0, 0))), rng.uniform(2, 10))
    return layer


def place(canvas: Floats, layer: Floats, centre: tuple[float, float], extent: float, angle_deg: float = 0) -> None:
    """Draw a layer onto a canvas, in place.

    Args:
        canvas: premultiplied (H, W, 4).
        layer: premultiplied (h, w, 4).
        centre: (x, y) on the canvas, pixels.
        extent: longer side of the layer on the canvas, pixels.
        angle_deg: turn, degrees anticlockwise.
    """
    scale = extent / max(layer.shape[:2])
    if scale < 1:  # averaged first: the warp below samples four pixels and would alias
        size = (max(2, round(layer.shape[1] * scale)), max(2, round(layer.shape[0] * scale)))
        layer = np.asarray(cv2.resize(layer, size, interpolation=cv2.INTER_AREA), np.float32)
        scale = 1.0
    height, width = layer.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, scale)
    matrix[:, 2] += (centre[0] - width / 2, centre[1] - height / 2)
    size = (canvas.shape[1], canvas.shape[0])
    over(canvas, np.clip(cv2.warpAffine(layer, matrix, size, flags=cv2.INTER_LINEAR), 0, 1))
