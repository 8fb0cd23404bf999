"""Made-up pictures for measuring design extraction: printed shirts with known designs, and what a model may answer.

No photograph and no model's answer can be kept in the repository, so both are drawn: a shirt with folds, weave, light
and sensor noise, the design bent and lit with it, in front of a plain or busy ground; answers are the design on a plain
ground, well extracted or redrawn in a known way. Every picture comes from its seed.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]
Random = np.random.Generator

ROOT = Path(__file__).resolve().parents[1]
HELDOUT = ROOT / "tests" / "data" / "heldout"
SAMPLES = ROOT / "tests" / "data" / "samples"
#: Kinds of held-out pictures that are digital artwork; the others show a photographed surface.
FLAT_KINDS = ("flat", "gradient", "pattern")


@dataclass(frozen=True)
class Design:
    """Printed art: (H, W, 3) uint8 RGB and (H, W) float alpha 0..1, cropped to what is visible."""

    name: str
    rgb: Pixels
    alpha: Field


def load_designs() -> list[Design]:
    """The designs of the held-out set and of the samples, without their grounds."""
    found = []
    for path in sorted(HELDOUT.glob("*_alpha.png")) + sorted(SAMPLES.glob("*_alpha.png")):
        stem = path.name.removesuffix("_alpha.png")
        source = next(p for p in (path.with_name(f"{stem}.jpg"), path.with_name(f"{stem}.png")) if p.exists())
        rgb = np.asarray(Image.open(source).convert("RGB"))
        alpha = np.asarray(Image.open(path).convert("L"), np.float32) / 255
        ys, xs = np.nonzero(alpha > 0.5)
        box = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        found.append(Design(stem, np.ascontiguousarray(rgb[box]), np.ascontiguousarray(alpha[box])))
    return found


def _noise(rng: Random, height: int, width: int, cell_px: float) -> Field:
    """Smooth noise of about mean 0 and deviation 1, with features of about `cell_px`."""
    small = rng.standard_normal((max(2, int(height / cell_px) + 2), max(2, int(width / cell_px) + 2)))
    field = cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(field / max(1e-6, float(field.std())), np.float32)


def _jpeg(rgb: Field, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _shirt_mask(height: int, width: int, rng: Random) -> Field:
    """(H, W) 0..1: body, two sleeves and a neck, about as an online shop shows a shirt."""
    points = np.array(
        [(.36, .06), (.43, .12), (.57, .12), (.64, .06), (.80, .12), (.99, .34), (.86, .44), (.78, .36), (.79, .97),
         (.21, .97), (.22, .36), (.14, .44), (.01, .34), (.20, .12)]
    )  # fmt: skip
    points = points + rng.normal(0, 0.008, points.shape)
    mask = np.zeros((height, width), np.float32)
    cv2.fillPoly(mask, [(points * (width, height)).round().astype(np.int32)], 1.0)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), 1.2), np.float32)


def _ground(kind: str, height: int, width: int, rng: Random) -> Field:
    """(H, W, 3) float 0..255 behind the shirt."""
    if kind == "white":
        return np.full((height, width, 3), 255, np.float32)
    base = rng.uniform(60, 230, 3).astype(np.float32)
    plane = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    if kind == "plain":
        return plane
    if kind == "gradient":
        slope = np.linspace(-30, 30, height, dtype=np.float32)[:, None, None]
        return np.asarray(plane + slope, np.float32)
    stripes = _noise(rng, height, max(2, width // 40), 4)
    wood = cv2.resize(stripes, (width, height), interpolation=cv2.INTER_LINEAR) * 14
    return np.asarray(plane + wood[..., None] + _noise(rng, height, width, 60)[..., None] * 12, np.float32)


def mockup(design: Design, seed: int, ground: str = "white", close_up: bool = False) -> bytes:
    """A photograph of the design printed on a shirt, as a JPEG file.

    Args:
        ground: "white", "plain", "gradient" or "busy".
        close_up: fabric fills the picture, as when the print is photographed from near.
    """
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(700, 1100)), int(rng.integers(640, 1000))
    cloth = np.broadcast_to(rng.uniform(25, 235, 3).astype(np.float32), (height, width, 3)).copy()
    share = rng.uniform(0.6, 0.85) if close_up else rng.uniform(0.3, 0.42)
    placed, alpha = _print(design, height, width, share, (0.5, 0.5 if close_up else 0.45), rng)
    cloth = cloth * (1 - alpha[..., None]) + placed * alpha[..., None]
    folds = _noise(rng, height, width, 140) * 0.07 + _noise(rng, height, width, 50) * 0.03
    light = np.linspace(rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.1), width, dtype=np.float32)[None]
    weave = _noise(rng, height, width, 1.6) * rng.uniform(0.01, 0.03)
    cloth = cloth * (light * (1 + folds + weave))[..., None]
    picture = cloth
    if not close_up:
        mask = _shirt_mask(height, width, rng)[..., None]
        picture = _ground(ground, height, width, rng) * (1 - mask) + cloth * mask
    if ground != "white":  # shops cut studio pictures out onto pure white, without sensor noise
        picture = picture + rng.normal(0, rng.uniform(1, 3), picture.shape)
    return _jpeg(np.asarray(picture, np.float32), int(rng.integers(84, 95)))


def _print(
    design: Design, height: int, width: int, share: float, centre: tuple[float, float], rng: Random
) -> tuple[Field, Field]:
    """The design bent as cloth bends it, in the picture's frame: colours and alpha."""
    h, w = design.alpha.shape
    scale = share * width / max(w, h * width / height)
    across, down = w * scale / 2, h * scale / 2
    x, y = centre[0] * width, centre[1] * height
    corners = np.array([(x - across, y - down), (x + across, y - down), (x + across, y + down), (x - across, y + down)])
    corners = corners + rng.normal(0, 0.012 * across, corners.shape)
    turn = cv2.getPerspectiveTransform(
        np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float32), corners.astype(np.float32)
    )
    rgb = cv2.warpPerspective(design.rgb, turn, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpPerspective(design.alpha, turn, (width, height), flags=cv2.INTER_AREA)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    bend = 0.006 * across
    xs = xs + _noise(rng, height, width, 120) * bend
    ys = ys + _noise(rng, height, width, 120) * bend
    rgb = cv2.remap(rgb, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.remap(alpha, xs, ys, cv2.INTER_LINEAR)
    return np.asarray(rgb, np.float32), np.asarray(alpha, np.float32)


# --- what a model may answer ----------------------------------------------------------------------------------------
def answer(design: Design, seed: int) -> bytes:
    """The design well extracted: on a plain ground, other size and aspect, slightly other colours, as a JPEG file."""
    rng = np.random.default_rng(seed)
    width, height = ((1024, 1024), (832, 1248), (1248, 832), (896, 1152))[int(rng.integers(4))]
    ground = np.asarray(((255, 255, 255), (245, 245, 245), (0, 0, 0), (0, 177, 64))[int(rng.integers(4))], np.float32)
    h, w = design.alpha.shape
    scale = rng.uniform(0.6, 0.95) * min(width / w, height / h)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    rgb = cv2.resize(design.rgb, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    alpha = cv2.resize(design.alpha, size, interpolation=cv2.INTER_LINEAR)[..., None]
    soft = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 1.2))  # what a model loses of fine detail
    tinted = 255 * np.power(np.clip(soft, 0, 255) / 255, rng.uniform(0.85, 1.2)) * rng.uniform(0.95, 1.05, 3)
    x, y = int(rng.integers(0, width - size[0] + 1)), int(rng.integers(0, height - size[1] + 1))
    canvas = np.broadcast_to(ground, (height, width, 3)).copy()
    part = canvas[y : y + size[1], x : x + size[0]]
    part[:] = part * (1 - alpha) + tinted * alpha
    return _jpeg(canvas, int(rng.integers(85, 95)))


def _mirrored(design: Design, other: Design, rng: Random) -> Design:
    return Design(design.name, design.rgb[:, ::-1].copy(), design.alpha[:, ::-1].copy())


def _other(design: Design, other: Design, rng: Random) -> Design:
    return other


def _recoloured(design: Design, other: Design, rng: Random) -> Design:
    hls = cv2.cvtColor(design.rgb, cv2.COLOR_RGB2HLS)
    hls[..., 0] = ((hls[..., 0].astype(int) + int(rng.integers(50, 130))) % 180).astype(np.uint8)
    hls[..., 1] = np.where(hls[..., 2] < 40, 255 - hls[..., 1], hls[..., 1])  # greys have no hue: they are inverted
    return Design(design.name, np.asarray(cv2.cvtColor(hls, cv2.COLOR_HLS2RGB), np.uint8), design.alpha)


def _bent(design: Design, other: Design, rng: Random) -> Design:
    h, w = design.alpha.shape
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    reach = 0.03 * max(h, w)
    xs, ys = xs + _noise(rng, h, w, max(h, w) / 5) * reach, ys + _noise(rng, h, w, max(h, w) / 5) * reach
    rgb = cv2.remap(design.rgb, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Design(design.name, np.asarray(rgb, np.uint8), np.asarray(cv2.remap(design.alpha, xs, ys, cv2.INTER_LINEAR)))


def _half_replaced(design: Design, other: Design, rng: Random) -> Design:
    h, w = design.alpha.shape
    rgb, alpha = design.rgb.copy(), design.alpha.copy()
    part = np.s_[h // 2 :] if rng.random() < 0.5 else np.s_[: h // 2]
    size = (w, rgb[part].shape[0])
    rgb[part] = cv2.resize(other.rgb, size, interpolation=cv2.INTER_AREA)
    alpha[part] = cv2.resize(other.alpha, size, interpolation=cv2.INTER_AREA)
    return Design(design.name, rgb, alpha)


def _tile_lost(design: Design, other: Design, rng: Random) -> Design:
    """About a ninth of the art is missing: the middle tile of its box in the place where most art is."""
    h, w = design.alpha.shape
    tiles = [np.s_[h * i // 3 : h * (i + 1) // 3, w * j // 3 : w * (j + 1) // 3] for i in range(3) for j in range(3)]
    tiles.sort(key=lambda tile: -float(design.alpha[tile].sum()))
    alpha = design.alpha.copy()
    alpha[tiles[int(rng.integers(3))]] = 0
    return Design(design.name, design.rgb, alpha)


#: How a model may fail to keep a design, from gross to subtle.
REDRAWN: dict[str, Callable[[Design, Design, Random], Design]] = {
    "another design": _other,
    "mirrored": _mirrored,
    "half replaced": _half_replaced,
    "recoloured": _recoloured,
    "bent": _bent,
    "a ninth lost": _tile_lost,
}


def redrawn(design: Design, other: Design, kind: str, seed: int) -> bytes:
    """A redrawn design as a model would answer it, as a JPEG file."""
    return answer(REDRAWN[kind](design, other, np.random.default_rng(seed + 1)), seed)
