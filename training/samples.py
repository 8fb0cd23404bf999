"""Draw the demo's two sample designs, with their exact alpha, from held-out artwork and fonts.

    python -m training.samples        # writes tests/data/samples/{front.png,back.jpg,front_alpha.png,back_alpha.png}

`front` is a camp badge on navy heather cloth with mild folds; `back` a space scene with soft light on plain paper.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.assets import CACHE, npm_pack, svg_document
from training.backgrounds import Floats, noise, turned_noise
from training.designs import outlined, over, place
from training.split import ART_SETS, TEST

TARGET = Path(__file__).parent.parent / "tests" / "data" / "samples"
#: (height, width) of both designs, pixels.
SIZE = (1500, 1250)
CREAM, ORANGE, RUST = (0.98, 0.92, 0.78), (0.96, 0.60, 0.20), (0.84, 0.30, 0.20)


def emoji(name: str, size: int) -> Floats:
    """An emoji of the held-out set Twemoji, premultiplied (size, size, 4)."""
    import resvg_py  # only drawing needs it

    package = next(art.package for art in ART_SETS if art.name == "twemoji")
    with tarfile.open(npm_pack(package)) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        icons = json.load(member)["icons"]
    png = resvg_py.svg_to_bytes(svg_string=svg_document(icons[name]["body"], 36, 36), width=size)
    layer: Floats = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32) / np.float32(255)
    layer[..., :3] *= layer[..., 3:]
    return layer


def text(words: str, font: str, size: int, colour: tuple[float, float, float], arc: float = 0.0) -> Floats:
    """Lettering, premultiplied (h, w, 4); `arc` lifts the middle by that share of the width."""
    face = ImageFont.truetype(str(CACHE / "fonts" / f"{TEST}_{font}.woff"), size)
    left, top, right, bottom = face.getbbox(words)
    picture = Image.new("L", (int(right - left) + 80, int(bottom - top) + 80))
    ImageDraw.Draw(picture).text((40 - left, 40 - top), words, fill=255, font=face)
    mask: Floats = np.asarray(picture, np.float32) / np.float32(255)
    if arc:
        height, width = mask.shape
        rise = arc * width
        y, x = np.mgrid[0 : int(height + rise), 0:width].astype(np.float32)
        lift = rise * (1 - (2 * x / width - 1) ** 2)
        bent = cv2.remap(mask, x, (y - rise + lift).astype(np.float32), cv2.INTER_LINEAR)
        mask = np.asarray(bent, np.float32)
    return np.dstack((mask[..., None] * np.array(colour, np.float32), mask)).astype(np.float32)


def disc(height: int, width: int, centre: tuple[float, float], radius: float, soft: float = 1.0) -> Floats:
    """A filled circle with a soft edge, (height, width) 0..1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.clip((radius - np.hypot(x - centre[0], y - centre[1])) / soft + 0.5, 0, 1).astype(np.float32)


def painted(mask: Floats, colour: Floats) -> Floats:
    """Premultiplied layer of a (H, W) mask and an (H, W, 3) or (3,) colour."""
    paint = np.broadcast_to(colour, (*mask.shape, 3))
    return np.dstack((mask[..., None] * paint, mask)).astype(np.float32)


def polygon(height: int, width: int, corners: list[tuple[float, float]]) -> Floats:
    """A filled polygon with smooth edges, (height, width) 0..1."""
    mask = np.zeros((height, width), np.uint8)
    points = (np.array(corners) * 16).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / np.float32(255)


def camp_badge(height: int, width: int) -> Floats:
    """A striped sunset with mountains, trees, animals and lettering; premultiplied (height, width, 4)."""
    canvas = np.zeros((height, width, 4), np.float32)
    middle, level = width / 2, height * 0.47
    radius = width * 0.385
    y = np.mgrid[0:height, 0:width][0].astype(np.float32)
    down = np.clip((y - level + radius) / (2 * radius), 0, 1)[..., None]
    sky = (np.array((1.0, 0.83, 0.36)) * (1 - down) + np.array((0.93, 0.33, 0.30)) * down).astype(np.float32)
    sun = disc(height, width, (middle, level), radius)
    over(canvas, painted(sun, sky))
    for number, colour in enumerate((RUST, (0.62, 0.20, 0.30), (0.40, 0.11, 0.26))):  # mountain ranges, far to near
        base = level + radius * (0.05 + 0.28 * number)
        points = [(0.0, float(height))]
        rng = np.random.default_rng(40 + number)
        for step in range(9):
            peak = rng.uniform(0.2, 0.55) if step % 2 else rng.uniform(-0.05, 0.1)
            points.append((width * step / 8, base - radius * peak))
        points.append((float(width), float(height)))
        over(canvas, painted(polygon(height, width, points) * sun, np.array(colour, np.float32)))
    # Gaps in the lower half, as retro sunsets have: the cloth shows through.
    for number in range(4):
        top = level + radius * (0.62 + 0.1 * number)
        gap = (np.abs(y - top) < radius * (0.008 + 0.005 * number)).astype(np.float32)
        canvas *= 1 - gap[..., None]
    for name, x, at, extent, angle in (
        ("evergreen-tree", 0.20, 0.585, 0.25, 3), ("evergreen-tree", 0.81, 0.58, 0.27, -3),
        ("evergreen-tree", 0.12, 0.63, 0.18, 0), ("evergreen-tree", 0.895, 0.63, 0.17, 0),
        ("fox", 0.5, 0.585, 0.36, 0), ("maple-leaf", 0.28, 0.735, 0.13, 25),
        ("mushroom", 0.70, 0.725, 0.13, -8), ("butterfly", 0.735, 0.30, 0.12, 15), ("bird", 0.27, 0.33, 0.11, -6),
    ):  # fmt: skip
        place(canvas, emoji(name, 512), (width * x, height * at), width * extent, angle)
    title = outlined(np.random.default_rng(0), text("WILD & FREE", "luckiest-guy", 230, CREAM, arc=0.13), 14,
                     np.array(RUST, np.float32))  # fmt: skip
    place(canvas, title, (middle, height * 0.145), width * 0.94)
    place(canvas, text("Adventure Club", "shrikhand", 200, ORANGE), (middle, height * 0.845), width * 0.80)
    place(canvas, text("EST. 2026", "righteous", 120, CREAM), (middle, height * 0.935), width * 0.34)
    for side in (-1, 1):
        place(canvas, emoji("star", 256), (middle + side * width * 0.26, height * 0.935), width * 0.07, 12 * side)
    return canvas


def space_scene(height: int, width: int) -> Floats:
    """A rocket before a glowing planet, with a fading trail and soft light; premultiplied (height, width, 4)."""
    canvas = np.zeros((height, width, 4), np.float32)
    rng = np.random.default_rng(5)
    centre = (width * 0.5, height * 0.42)
    radius = width * 0.30
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    away = np.hypot(x - centre[0], y - centre[1])
    glow = np.clip(1.15 - away / (radius * 1.55), 0, 1) ** 1.6 * 0.85
    over(canvas, painted(glow.astype(np.float32), np.array((0.98, 0.55, 0.62), np.float32)))
    planet = disc(height, width, centre, radius)
    bands = noise(rng, height, width, 70, 900)
    shade = np.clip(0.5 + 0.22 * bands + (x - y - centre[0] + centre[1]) / (4 * radius), 0, 1)[..., None]
    colours = np.array((0.36, 0.22, 0.62)) * (1 - shade) + np.array((0.98, 0.50, 0.55)) * shade
    over(canvas, painted(planet, colours.astype(np.float32)))
    # The trail: from solid fire at the rocket to nothing at the lower left.
    start, end = np.array((width * 0.47, height * 0.47)), np.array((width * 0.13, height * 0.74))
    axis = (end - start) / np.linalg.norm(end - start)
    along = ((x - start[0]) * axis[0] + (y - start[1]) * axis[1]) / np.linalg.norm(end - start)
    across = np.abs((x - start[0]) * -axis[1] + (y - start[1]) * axis[0])
    wide = width * (0.035 + 0.06 * np.clip(along, 0, 1))
    trail = np.clip(1.2 - across / wide, 0, 1) * np.clip(1 - along, 0, 1) * (along > -0.05)
    burnt = np.clip(along, 0, 1)[..., None]
    fire = np.array((1.0, 0.80, 0.25)) * (1 - burnt) + np.array((0.95, 0.30, 0.25)) * burnt
    over(canvas, painted(trail.astype(np.float32), fire.astype(np.float32)))
    place(canvas, emoji("rocket", 800), (width * 0.585, height * 0.385), width * 0.40, 0)
    for name, at_x, at_y, extent, angle in (
        ("ringed-planet", 0.83, 0.135, 0.20, 0), ("glowing-star", 0.14, 0.17, 0.13, -10),
        ("star", 0.86, 0.56, 0.08, 15), ("sparkles", 0.30, 0.11, 0.10, 0), ("comet", 0.12, 0.50, 0.13, 0),
        ("full-moon", 0.80, 0.69, 0.11, 0), ("star", 0.60, 0.085, 0.05, 0),
    ):  # fmt: skip
        place(canvas, emoji(name, 400), (width * at_x, height * at_y), width * extent, angle)
    place(canvas, text("To the Moon", "shrikhand", 220, (0.30, 0.18, 0.52)), (width / 2, height * 0.825), width * 0.86)
    place(
        canvas, text("KEEP EXPLORING", "righteous", 120, (0.93, 0.40, 0.42)), (width / 2, height * 0.925), width * 0.6
    )
    return canvas


def heather(height: int, width: int) -> tuple[Floats, Floats]:
    """Navy heather cloth: colour (H, W, 3) and shading (H, W) with two mild folds."""
    rng = np.random.default_rng(3)
    flecks = 0.02 * noise(rng, height, width, 3, 16) + 0.012 * noise(rng, height, width, 3, 5)
    colour = np.array((0.20, 0.26, 0.38), np.float32) + flecks[..., None]
    folds = 0.05 * turned_noise(rng, height, width, 1400, 320) + 0.03 * turned_noise(rng, height, width, 900, 250)
    return colour.astype(np.float32), (1 + folds).astype(np.float32)


def main() -> int:
    """Write the four files."""
    TARGET.mkdir(parents=True, exist_ok=True)
    height, width = SIZE
    front, back = camp_badge(height, width), space_scene(height, width)
    cloth, shading = heather(height, width)
    on_cloth = (front[..., :3] * (1 + 0.6 * (shading - 1))[..., None]) + cloth * shading[..., None] * (
        1 - front[..., 3:]
    )
    rng = np.random.default_rng(9)
    paper = np.array((0.955, 0.945, 0.915), np.float32) + 0.006 * noise(rng, height, width, 40, 40)[..., None]
    on_paper = back[..., :3] + paper * (1 - back[..., 3:])
    for name, picture, canvas in (("front.png", on_cloth, front), ("back.jpg", on_paper, back)):
        pixels = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
        options = {"quality": 92, "subsampling": 0} if name.endswith("jpg") else {"optimize": True}
        pixels.save(TARGET / name, dpi=(300, 300), **options)
        alpha = Image.fromarray((np.clip(canvas[..., 3], 0, 1) * 255 + 0.5).astype(np.uint8))
        alpha.save(TARGET / f"{name.split('.')[0]}_alpha.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
