"""Print designs: artwork, lettering, badges and photo panels, put together on a transparent canvas.

A canvas is (H, W, 4) float32, colours premultiplied by alpha, all in 0..1: premultiplied colours can be resized,
rotated and blurred without dark or white fringes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.backgrounds import Bytes, Floats, Rng, blend, gradient, noise, photo_crop, plain_colour, random_colour

WORDS = (
    "WILD", "SUMMER", "GOOD VIBES", "COFFEE", "1987", "ROCK", "DREAM", "LOVE", "NEW YORK", "PARIS", "OCEAN", "CAMP",
    "No. 7", "HELLO", "SUNSET", "BORN FREE", "Ride", "Adventure", "Stay Wild", "Best Dad", "Mountains", "Team", "Surf",
    "Pizza", "CAT MOM", "EST. 2024", "CLUB", "RUN", "Happy", "Lucky", "Forever", "No Rain", "Let's go", "Fresh",
    "PEACE", "STUDIO", "Bloom", "KING", "Queen", "Game On", "Be Kind", "The North", "Limited", "ORIGINAL", "Vintage",
    "84", "&",
)  # fmt: skip


@dataclass(frozen=True)
class Assets:
    """What designs are made from; every sequence but `colour` may be empty."""

    #: Arrays (N, S, S, 4) uint8 RGBA, colours not premultiplied.
    colour: Sequence[Bytes]
    #: The same for one-colour icons: only their alpha counts.
    mono: Sequence[Bytes]
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


def artwork(rng: Rng, assets: Assets) -> Floats:
    """One piece of art, premultiplied (S, S, 4)."""
    pools = assets.mono if assets.mono and rng.random() < 0.16 else assets.colour
    # By number of artworks, so that a small set's few pictures don't come up all the time.
    sizes = np.array([len(pool) for pool in pools], np.float64) ** 0.75
    pool = pools[rng.choice(len(pools), p=sizes / sizes.sum())]
    pixels = pool[rng.integers(len(pool))]
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    layer = pixels.astype(np.float32) / 255
    if pools is assets.mono:
        return fill(rng, np.ascontiguousarray(layer[..., 3]))
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
    """One to three words in one colour or gradient, sometimes outlined: premultiplied (h, w, 4)."""
    text = " ".join(rng.choice(WORDS, rng.choice((1, 1, 1, 2))))
    mask = text_mask(rng, assets.fonts, text)
    layer = fill(rng, mask, assets.photos)
    if rng.random() < 0.3:
        layer = outlined(rng, np.pad(layer, ((10, 10), (10, 10), (0, 0))), rng.uniform(3, 9))
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
    kind = rng.integers(6)
    if kind == 0:
        cv2.circle(big, (full // 2, full // 2), int(full * 0.48), 255, -1)
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
    """A filled shape that carries art or a photo, premultiplied (S, S, 4)."""
    side = 288
    mask = shape_mask(rng, side)
    if assets.photos and rng.random() < 0.4:
        photo = photo_crop(rng, assets.photos, side, side)
        layer = np.dstack((photo * mask[..., None], mask)).astype(np.float32)
    else:
        layer = fill(rng, mask)
    if rng.random() < 0.8:
        art = lettering(rng, assets) if rng.random() < 0.35 else artwork(rng, assets)
        place(layer, art, (side * rng.uniform(0.4, 0.6), side * rng.uniform(0.4, 0.6)), side * rng.uniform(0.4, 0.75))
    if rng.random() < 0.3:
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


def design(rng: Rng, assets: Assets, height: int, width: int) -> Floats:
    """A whole design on a transparent canvas, premultiplied (height, width, 4), filling 30-95 % of the frame."""
    canvas = np.zeros((height, width, 4), np.float32)
    short = min(height, width)
    turn = rng.normal(0, 6) if rng.random() < 0.6 else rng.uniform(-40, 40)
    middle = (width * rng.uniform(0.42, 0.58), height * rng.uniform(0.42, 0.58))
    draw = rng.random()
    if draw < 0.30:
        place(canvas, artwork(rng, assets), middle, short * rng.uniform(0.4, 0.97), turn)
    elif draw < 0.52:  # art between lines of text
        place(canvas, artwork(rng, assets), middle, short * rng.uniform(0.4, 0.7), turn)
        for level in ((0.14,), (0.86,), (0.12, 0.88))[rng.integers(3)]:
            place(canvas, lettering(rng, assets), (width / 2, height * level), width * rng.uniform(0.4, 0.92))
    elif draw < 0.72:  # several separate elements
        for _ in range(rng.integers(2, 7)):
            spot = (width * rng.uniform(0.15, 0.85), height * rng.uniform(0.15, 0.85))
            layer = artwork(rng, assets) if rng.random() < 0.8 else lettering(rng, assets)
            place(canvas, layer, spot, short * rng.uniform(0.15, 0.5), rng.uniform(-40, 40))
    elif draw < 0.84:  # lettering alone
        lines = int(rng.integers(1, 5))
        for line in range(lines):
            level = height * (0.5 + (line - (lines - 1) / 2) * rng.uniform(0.17, 0.23))
            place(canvas, lettering(rng, assets), (width / 2, level), width * rng.uniform(0.4, 0.95), rng.normal(0, 2))
    else:
        place(canvas, badge(rng, assets), middle, short * rng.uniform(0.5, 0.95), turn if rng.random() < 0.5 else 0)
        if rng.random() < 0.3:
            place(canvas, lettering(rng, assets), (width / 2, height * 0.88), width * rng.uniform(0.4, 0.9))
    return finished(rng, canvas)


def finished(rng: Rng, canvas: Floats) -> Floats:
    """Effects on a whole design: outline, glow, fade, halftone, worn ink. Any but the outline leaves soft alpha."""
    height, width = canvas.shape[:2]
    scale = max(height, width) / 384
    if rng.random() < 0.12:
        canvas = outlined(rng, canvas, rng.uniform(2, 9) * scale)
    draw = rng.random()
    if draw < 0.10:  # a coloured glow; dark ones would be shadows, which belong to the background
        halo = cv2.GaussianBlur(canvas[..., 3], (0, 0), rng.uniform(4, 16) * scale)
        halo = np.clip(halo * rng.uniform(0.8, 1.6), 0, rng.uniform(0.5, 0.95)).astype(np.float32)
        colour = random_colour(rng)
        colour = np.clip(colour / max(float(colour.max()), 0.2), 0, 1).astype(np.float32)
        glow = np.dstack((halo[..., None] * colour, halo)).astype(np.float32)
        over(glow, canvas)
        canvas = glow
    elif draw < 0.15:  # fades out towards one side
        ramp = np.clip(gradient(rng, height, width) * rng.uniform(1.2, 2.2) + rng.uniform(-0.3, 0.25), 0, 1)
        canvas = canvas * ramp[..., None].astype(np.float32)
    elif draw < 0.19:  # see-through ink; clearly above one half, where "inside" and IoU would become a coin toss
        canvas = canvas * np.float32(rng.uniform(0.62, 0.92))
    elif draw < 0.225:  # worn print
        worn = noise(rng, height, width, 2.5 * scale, 2.5 * scale) + 0.7 * noise(rng, height, width, 40, 40)
        keep = np.clip((worn + rng.uniform(0.9, 1.8)) * 3, 0, 1).astype(np.float32)
        canvas = canvas * keep[..., None]
    elif draw < 0.25:  # halftone: dots whose size follows a ramp
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        period = rng.uniform(5, 11) * scale
        dots = 0.5 + 0.25 * (np.cos((x + y) * 2 * np.pi / period) + np.cos((x - y) * 2 * np.pi / period))
        ramp = gradient(rng, height, width) * 1.6 - rng.uniform(0, 0.4)
        keep = np.clip((dots - 1 + ramp) * period + 0.5, 0, 1).astype(np.float32)
        canvas = canvas * keep[..., None]
    elif draw < 0.29:  # a few loose splatters
        for _ in range(rng.integers(3, 25)):
            spot = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
            red, green, blue = (float(part) for part in random_colour(rng))
            cv2.circle(canvas, spot, int(rng.uniform(1, 5) * scale) + 1, (red, green, blue, 1.0), -1, cv2.LINE_AA)
    return canvas
