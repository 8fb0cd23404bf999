"""Lay a model's answer over the picture it was made from, and say whether it is still the same design.

An image model answers in a size and aspect of its own, and may redraw what it was asked to copy. Here its answer is
placed where the design is in the original: matched features give scale, turn and shift (SIFT: Lowe 2004, International
Journal of Computer Vision 60; robustly by RANSAC: Fischler and Bolles 1981), refined by maximising correlation (ECC:
Evangelidis and Psarakis 2008, IEEE TPAMI 30). Where too few features match, a search over scales finds the place. What
is left of the difference, after light and small bends of cloth are allowed for, is the score.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from worker.images.picture import Pixels

Field = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

#: Score below which the design counts as redrawn. Ours: see python -m benchmarks.extraction.
REDRAWN_BELOW = 0.4
#: Longest side on which both are laid over each other, and of the original while features are matched (px).
_LONG_SIDE, _MATCH_SIDE = 480, 800
#: Fewest matched features that make a placement, the largest error of one (px), and the scales that are believable.
_INLIERS, _REPROJECTION_PX, _SCALES = 9, 6.0, (0.05, 6.0)
#: Lowe's ratio: a match must be this much better than the second best.
_RATIO = 0.78
#: Longest side of the original for the search over scales (px); the placement is refined afterwards.
_SEARCH_SIDE = 240
#: Passes of refinement, coarse and fine: reach around the art and width of the smoothing (px, odd).
_REFINEMENTS = ((41, 21), (9, 5))
#: Difference from the ground's colour (levels) from which a pixel is art.
_ART = 24
#: How far a piece may lie from where the placement puts it (px of the comparison): bent cloth.
_SLACK_PX = 8
#: Longest side of the art when it is compared (px), the margin around it as a share of that, the window (px), and the
#: deviation of edges under which a window is flat.
_ART_SIDE, _MARGIN, _WINDOW, _QUIET = 360, 0.08, (31, 31), 6.0
#: Share of strong edges beside the art that means nothing: a seam, a fold, a collar.
_LOST_FREE = 0.05


@dataclass(frozen=True)
class Registered:
    """An answer in the original's frame.

    Attributes:
        rgb: (H, W, 3) uint8, of the original's size; around the answer its own ground colour.
        score: 0..1, how much of the design is where it was and as it was; 1 is the same.
        placed: False when no placement was found and the answer was only fitted into the frame.
    """

    rgb: Pixels
    score: float
    placed: bool

    @property
    def redrawn(self) -> bool:
        return self.score < REDRAWN_BELOW


def register(answer: Pixels, original: Pixels) -> Registered:
    """Bring an answer into the original's frame and compare the two.

    Args:
        answer, original: (h, w, 3) and (H, W, 3) uint8 RGB, of any sizes.
    """
    ground = ground_colour(answer)
    small, shrunk = _shrink(answer)
    base, base_shrunk = _shrink(original)
    matrix = _match(small, original, base_shrunk)
    if matrix is None:
        matrix = _search(small, base, ground)
    placed = matrix is not None
    matrix = _fit(small.shape, base.shape) if matrix is None else _refine(small, base, matrix, ground)
    full = np.diag([1 / base_shrunk, 1 / base_shrunk, 1.0]) @ _square(matrix) @ np.diag([shrunk, shrunk, 1.0])
    size = (original.shape[1], original.shape[0])
    whole = _warp(answer, full[:2], size, ground)
    score = similarity(_shrink(whole, 1600)[0], _shrink(original, 1600)[0], ground) if placed else 0.0
    return Registered(whole, round(score, 3), placed)


def ground_colour(rgb: Pixels) -> tuple[int, int, int]:
    """The colour around the art: the median of the picture's border."""
    edge = np.concatenate(
        [rgb[:3].reshape(-1, 3), rgb[-3:].reshape(-1, 3), rgb[:, :3].reshape(-1, 3), rgb[:, -3:].reshape(-1, 3)]
    )
    red, green, blue = np.median(edge, axis=0)
    return int(red), int(green), int(blue)


def _shrink(rgb: Pixels, long_side: int = _LONG_SIDE) -> tuple[Pixels, float]:
    scale = min(1.0, long_side / max(rgb.shape[:2]))
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _warp(rgb: Pixels, matrix: Matrix, size: tuple[int, int], ground: tuple[int, int, int]) -> Pixels:
    shrinks = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))) < 0.6
    if shrinks:  # warpAffine samples single pixels: without this, fine lines would break up
        blur = 0.35 / float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), blur), np.uint8)
    warped = cv2.warpAffine(
        rgb, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT, borderValue=ground
    )
    return np.asarray(warped, np.uint8)


def _square(matrix: Matrix) -> Matrix:
    return np.vstack([matrix, [0.0, 0.0, 1.0]])


def _fit(shape: tuple[int, ...], frame: tuple[int, ...]) -> Matrix:
    """As large as the frame allows, in its middle."""
    scale = min(frame[0] / shape[0], frame[1] / shape[1])
    x, y = (frame[1] - shape[1] * scale) / 2, (frame[0] - shape[0] * scale) / 2
    return np.array([[scale, 0, x], [0, scale, y]], np.float64)


def _grey(rgb: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def _match(small: Pixels, original: Pixels, base_shrunk: float) -> Matrix | None:
    """Placement, in the shrunk original, by features that both pictures have.

    The art is often a small part of the original, which is therefore looked at in more detail.
    """
    base, sharp = _shrink(original, _MATCH_SIDE)
    finder = cv2.SIFT_create(nfeatures=1500, contrastThreshold=0.02)  # type: ignore[attr-defined]  # stubs of 4
    points, described = finder.detectAndCompute(_grey(small), None)
    base_points, base_described = finder.detectAndCompute(_grey(base), None)
    if described is None or base_described is None or len(points) < _INLIERS or len(base_points) < _INLIERS:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(described, base_described, k=2)
    good = [pair[0] for pair in pairs if len(pair) == 2 and pair[0].distance < _RATIO * pair[1].distance]
    if len(good) < _INLIERS:
        return None
    source = np.array([points[match.queryIdx].pt for match in good], np.float32)
    target = np.array([base_points[match.trainIdx].pt for match in good], np.float32)
    matrix, inliers = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=_REPROJECTION_PX, maxIters=4000
    )
    if matrix is None or int(inliers.sum()) < _INLIERS:
        return None
    matrix = np.asarray(matrix, np.float64) * (base_shrunk / sharp)
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    return matrix if _SCALES[0] <= scale <= _SCALES[1] else None


def _edges(rgb: Pixels) -> Field:
    """Strength of edges, soft enough to overlap when they lie a little apart."""
    grey = cv2.GaussianBlur(_grey(rgb).astype(np.float32), (0, 0), 1.0)
    strength = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return np.asarray(cv2.GaussianBlur(np.minimum(strength, 200), (0, 0), 2.0), np.float32)


def _search(small: Pixels, base: Pixels, ground: tuple[int, int, int]) -> Matrix | None:
    """Placement of art with few features (a disc, a word): its edges are tried on the original's at many scales."""
    art = _art(small, ground)
    ys, xs = np.nonzero(art)
    if not ys.size:
        return None
    # With ground around it: an edge that is cut in half fits best where the art is too small.
    rim = round(0.12 * max(np.ptp(xs), np.ptp(ys))) + 2
    padded = cv2.copyMakeBorder(small, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=ground)
    left, top = int(xs.min()) - rim, int(ys.min()) - rim
    crop = padded[ys.min() : ys.max() + 1 + 2 * rim, xs.min() : xs.max() + 1 + 2 * rim]
    base, shrunk = _shrink(base, _SEARCH_SIDE)
    field = _edges(base)
    best: tuple[float, float, int, int] | None = None
    scale = min(base.shape[0] / crop.shape[0], base.shape[1] / crop.shape[1]) * 0.99
    while scale * max(crop.shape[:2]) > 24:
        size = (max(8, int(crop.shape[1] * scale)), max(8, int(crop.shape[0] * scale)))
        if size[0] <= base.shape[1] and size[1] <= base.shape[0]:
            part = _edges(np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8))
            found = np.nan_to_num(cv2.matchTemplate(field, part, cv2.TM_CCOEFF_NORMED), posinf=0, neginf=0)
            found[_is_flat(field, size)] = 0  # a plain ground correlates with anything
            _, value, _, (x, y) = cv2.minMaxLoc(found)
            if best is None or value > best[0]:
                best = (float(value), scale, int(x), int(y))
        scale *= 0.92
    if best is None or best[0] < 0.3:
        return None
    scale, right_by, down_by = best[1] / shrunk, best[2] / shrunk, best[3] / shrunk
    return np.array([[scale, 0, right_by - scale * left], [0, scale, down_by - scale * top]], np.float64)


def _is_flat(field: Field, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where a window of this size, by its top left corner, has hardly any edge in it."""
    sums = cv2.integral(field)
    across, down = size
    total = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across] + sums[:-down, :-across]
    return np.asarray(total < 2.0 * across * down)


def _refine(small: Pixels, base: Pixels, matrix: Matrix, ground: tuple[int, int, int]) -> Matrix:
    """The placement without its last pixels of shift, scale and slant; a step that does not help is not taken."""
    size = (base.shape[1], base.shape[0])
    edges = _edges(base)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    for reach, smooth in _REFINEMENTS:
        laid = _warp(small, matrix, size, ground)
        mask = cv2.dilate(_art(laid, ground), np.ones((reach, reach), np.uint8))
        if int(mask.sum()) < 400:
            return matrix
        try:
            before = cv2.computeECC(_edges(laid), edges, mask)
            # The map found is from the template's frame to the input's; both are the original's here.
            unmoved = np.eye(2, 3, dtype=np.float32)
            _, found = cv2.findTransformECC(_edges(laid), edges, unmoved, cv2.MOTION_AFFINE, stop, mask, smooth)
            step = _square(np.asarray(found, np.float64))
            moved = np.abs(step - np.eye(3))
            if moved[:2, :2].max() > 0.2 or moved[:2, 2].max() > 0.2 * max(size):
                continue
            better = np.asarray((step @ _square(matrix))[:2], np.float64)
            if cv2.computeECC(_edges(_warp(small, better, size, ground)), edges, mask) > before:
                matrix = better
        except cv2.error:  # it did not converge
            continue
    return matrix


def _art(rgb: Pixels, ground: tuple[int, int, int]) -> Pixels:
    """(h, w) uint8, 1 where the answer is art and not ground."""
    away = np.abs(rgb.astype(np.int16) - np.asarray(ground, np.int16)).max(axis=2)
    return np.asarray(cv2.morphologyEx((away > _ART).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)))


def similarity(laid: Pixels, base: Pixels, ground: tuple[int, int, int]) -> float:
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
    art = _art(laid, ground)
    if int(art.sum()) < 100:
        return 0.0
    base = _unbend(laid, base)
    soft = cv2.GaussianBlur(art.astype(np.float32), (0, 0), 1.0)[..., None]
    lit = _light(laid, base, art)
    put = np.clip(lit * soft + base * (1 - soft), 0, 255).astype(np.uint8)
    rim = cv2.dilate(art, np.ones((7, 7), np.uint8)).astype(np.float32)
    structure = _correlation(_edges(put), _edges(base), rim)
    colour = _colours(put, base)
    inside = art > 0
    local = np.clip(structure[inside], 0, 1) * np.clip(colour[inside], 0, 1)
    # Most of the design may be right and a part gone: the worst fifth speaks as loudly as the rest.
    worst = np.sort(local)[: max(1, local.size // 5)]
    kept = float(0.5 * local.mean() + 0.5 * worst.mean())
    return kept * (1 - _lost(base, put, art))


def _cut(laid: Pixels, base: Pixels, ground: tuple[int, int, int]) -> tuple[Pixels, Pixels] | None:
    """Both pictures cut to the art and a margin, at the size they are compared in; None when there is no art."""
    ys, xs = np.nonzero(_art(laid, ground))
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
    strength = _edges(rgb)
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
    edges = _edges(base)
    inside = cv2.dilate(art, np.ones((13, 13), np.uint8)) > 0
    strong = edges > 0.5 * float(np.percentile(edges[inside], 90))
    share = float((strong & ~inside).sum()) / max(1, int(strong.sum()))
    return float(np.clip((share - _LOST_FREE) / (1 - _LOST_FREE), 0, 1))
