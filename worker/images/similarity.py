"""How far a model's answer, laid over the picture it was made from, still shows the same design."""

import cv2
import numpy as np
import numpy.typing as npt

from worker.images.picture import Pixels

Field = npt.NDArray[np.float32]
Colour = tuple[int, int, int]

#: Score below which the design counts as redrawn. Ours: see python -m benchmarks.extraction.
REDRAWN_BELOW = 0.4
#: Difference from the ground's colour (levels) from which a pixel is art.
_ART = 24
#: How far a piece may lie from where the placement puts it (px of the comparison): bent cloth.
_SLACK_PX = 8
#: Longest side of the art when it is compared (px), the margin around it as a share of that, the window (px), and the
#: deviation of edges under which a window is flat.
_ART_SIDE, _MARGIN, _WINDOW, _QUIET = 360, 0.08, (31, 31), 6.0
#: Share of strong edges beside the art that means nothing: a seam, a fold, a collar.
_LOST_FREE = 0.05


def similarity(laid: Pixels, base: Pixels, ground: Colour) -> float:
    """How far a laid answer and the original agree where the art is, 0..1.

    The answer's art is put over the original's cloth, in the original's light; then edges and colours of that and of
    the original are compared in windows, and strong edges beside the art count as lost.

    Args:
        laid, base: (H, W, 3) uint8 RGB of one size. ground: the answer's own ground colour.
    """
    cut = _cut(laid, base, ground)
    if cut is None:
        return 0.0
    laid, base = cut
    art = art_of(laid, ground)
    if int(art.sum()) < 100:
        return 0.0
    base = _unbend(laid, base)
    soft = cv2.GaussianBlur(art.astype(np.float32), (0, 0), 1.0)[..., None]
    lit = _light(laid, base, art)
    put = np.clip(lit * soft + base * (1 - soft), 0, 255).astype(np.uint8)
    rim = cv2.dilate(art, np.ones((7, 7), np.uint8)).astype(np.float32)
    structure = _correlation(edges_of(put), edges_of(base), rim)
    colour = _colours(put, base)
    inside = art > 0
    local = np.clip(structure[inside], 0, 1) * np.clip(colour[inside], 0, 1)
    # Most of the design may be right and a part gone: the worst fifth speaks as loudly as the rest.
    worst = np.sort(local)[: max(1, local.size // 5)]
    kept = float(0.5 * local.mean() + 0.5 * worst.mean())
    return kept * (1 - _lost(base, put, art))


def _cut(laid: Pixels, base: Pixels, ground: Colour) -> tuple[Pixels, Pixels] | None:
    """Both pictures cut to the art and a margin, at the size they are compared in; None when there is no art."""
    ys, xs = np.nonzero(art_of(laid, ground))
    if not ys.size:
        return None
    # Single far-away pixels are JPEG noise, not art.
    top, bottom = np.percentile(ys, (0.3, 99.7))
    left, right = np.percentile(xs, (0.3, 99.7))
    margin = _MARGIN * max(bottom - top, right - left, 8)
    box = np.s_[
        max(0, int(top - margin)) : int(bottom + margin) + 1, max(0, int(left - margin)) : int(right + margin) + 1
    ]
    scale = _ART_SIDE / max(bottom - top, right - left, 8)
    size = (max(8, round(laid[box].shape[1] * scale)), max(8, round(laid[box].shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    first, second = cv2.resize(laid[box], size, interpolation=how), cv2.resize(base[box], size, interpolation=how)
    return np.asarray(first, np.uint8), np.asarray(second, np.uint8)


def _unbend(laid: Pixels, base: Pixels) -> Pixels:
    """The original with the small bends of its cloth taken out, by what the answer shows; at most _SLACK_PX."""
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    flow = finder.calc(_level(laid), _level(base), None)
    flow = cv2.GaussianBlur(flow, (0, 0), 10)  # cloth bends softly; what moves abruptly was redrawn
    length = np.maximum(np.hypot(flow[..., 0], flow[..., 1]), 1e-6)
    flow *= np.minimum(1.0, _SLACK_PX / length)[..., None]
    ys, xs = np.mgrid[0 : base.shape[0], 0 : base.shape[1]].astype(np.float32)
    bent = cv2.remap(base, xs + flow[..., 0], ys + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(bent, np.uint8)


def _level(rgb: Pixels) -> Pixels:
    strength = edges_of(rgb)
    return np.asarray(np.minimum(255, strength * (255 / max(1.0, float(np.percentile(strength, 99))))), np.uint8)


def _light(laid: Pixels, base: Pixels, art: Pixels) -> Field:
    """(H, W, 3) the answer in the original's light: one gain and one shift per channel for the whole art."""
    inside = art > 0
    lit, target = laid.astype(np.float32), base.astype(np.float32)
    for channel in range(3):
        x, y = lit[..., channel][inside], target[..., channel][inside]
        gain, shift, weight = 1.0, 0.0, np.ones_like(x)
        for _ in range(6):  # reweighted, so that what was redrawn or shows cloth does not bend the rest
            mx, my = float(np.average(x, weights=weight)), float(np.average(y, weights=weight))
            spread = float(np.average((x - mx) ** 2, weights=weight)) + 200.0  # hardly any contrast: no gain from noise
            gain = (float(np.average((x - mx) * (y - my), weights=weight)) + 200.0) / spread
            gain, shift = float(np.clip(gain, 0.6, 1.6)), my - gain * mx
            weight = np.asarray(1 / (1 + ((y - gain * x - shift) / 15) ** 2), np.float32)
        lit[..., channel] = lit[..., channel] * gain + float(np.clip(shift, -60, 60))
    return lit


def _correlation(first: Field, second: Field, weight: Field) -> Field:
    """(H, W) local correlation of two fields of edges, -1..1, seen only where `weight` is."""
    total = np.maximum(cv2.blur(weight, _WINDOW), 1e-3)
    a, b = cv2.blur(first * weight, _WINDOW) / total, cv2.blur(second * weight, _WINDOW) / total
    saa = cv2.blur(first * first * weight, _WINDOW) / total - a * a
    sbb = cv2.blur(second * second * weight, _WINDOW) / total - b * b
    sab = cv2.blur(first * second * weight, _WINDOW) / total - a * b
    # The constant: where neither has edges (a flat area) there is nothing to disagree about.
    constant = _QUIET * _QUIET
    return np.asarray((sab + constant) / (np.sqrt(np.maximum(saa, 0) * np.maximum(sbb, 0)) + constant), np.float32)


def _colours(put: Pixels, base: Pixels) -> Field:
    """(H, W) agreement of colours, 0..1."""
    lab = cv2.cvtColor(put.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    other = cv2.cvtColor(base.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    difference = cv2.blur(lab, (7, 7)) - cv2.blur(other, (7, 7))
    difference[..., 0] *= 0.5  # folds change lightness, hardly hue
    return np.asarray(1 - np.clip((np.linalg.norm(difference, axis=2) - 8) / 32, 0, 1), np.float32)


def _lost(base: Pixels, put: Pixels, art: Pixels) -> float:
    """Strong edges of the original that lie beside the art, as a share 0..1 of all there are in the frame."""
    edges = edges_of(base)
    inside = cv2.dilate(art, np.ones((13, 13), np.uint8)) > 0
    strong = edges > 0.5 * float(np.percentile(edges[inside], 90))
    share = float((strong & ~inside).sum()) / max(1, int(strong.sum()))
    return float(np.clip((share - _LOST_FREE) / (1 - _LOST_FREE), 0, 1))


def art_of(rgb: Pixels, ground: Colour) -> Pixels:
    """(h, w) uint8, 1 where the answer is art and not ground."""
    away = np.abs(rgb.astype(np.int16) - np.asarray(ground, np.int16)).max(axis=2)
    return np.asarray(cv2.morphologyEx((away > _ART).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)))


def edges_of(rgb: Pixels) -> Field:
    """Strength of edges, soft enough to overlap when they lie a little apart."""
    grey = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
    strength = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return np.asarray(cv2.GaussianBlur(np.minimum(strength, 200), (0, 0), 2.0), np.float32)
