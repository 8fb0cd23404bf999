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
from worker.images.similarity import REDRAWN_BELOW, Colour, Field, art_of, edges_of, similarity

Matrix = npt.NDArray[np.float64]

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


def ground_colour(rgb: Pixels) -> Colour:
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


def _warp(rgb: Pixels, matrix: Matrix, size: tuple[int, int], ground: Colour) -> Pixels:
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    if scale < 0.25:  # far too large for its place: most of the way by area, or the blur below would take minutes
        rgb, shrunk = _shrink(rgb, max(1, round(max(rgb.shape[:2]) * scale * 2)))
        matrix, scale = np.asarray(matrix @ np.diag([1 / shrunk, 1 / shrunk, 1.0]), np.float64), scale / shrunk
    if scale < 0.6:  # warpAffine samples single pixels: without this, fine lines would break up
        rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), 0.35 / scale), np.uint8)
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


def _search(small: Pixels, base: Pixels, ground: Colour) -> Matrix | None:
    """Placement of art with few features (a disc, a word): its edges are tried on the original's at many scales."""
    art = art_of(small, ground)
    ys, xs = np.nonzero(art)
    if not ys.size:
        return None
    # With ground around it: an edge that is cut in half fits best where the art is too small.
    rim = round(0.12 * max(np.ptp(xs), np.ptp(ys))) + 2
    padded = cv2.copyMakeBorder(small, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=ground)
    left, top = int(xs.min()) - rim, int(ys.min()) - rim
    crop = padded[ys.min() : ys.max() + 1 + 2 * rim, xs.min() : xs.max() + 1 + 2 * rim]
    base, shrunk = _shrink(base, _SEARCH_SIDE)
    field = edges_of(base)
    best: tuple[float, float, int, int] | None = None
    scale = min(base.shape[0] / crop.shape[0], base.shape[1] / crop.shape[1]) * 0.99
    while scale * max(crop.shape[:2]) > 24:
        size = (max(8, int(crop.shape[1] * scale)), max(8, int(crop.shape[0] * scale)))
        if size[0] <= base.shape[1] and size[1] <= base.shape[0]:
            part = edges_of(np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8))
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


def _refine(small: Pixels, base: Pixels, matrix: Matrix, ground: Colour) -> Matrix:
    """The placement without its last pixels of shift, scale and slant; a step that does not help is not taken."""
    size = (base.shape[1], base.shape[0])
    edges = edges_of(base)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    for reach, smooth in _REFINEMENTS:
        laid = _warp(small, matrix, size, ground)
        mask = cv2.dilate(art_of(laid, ground), np.ones((reach, reach), np.uint8))
        if int(mask.sum()) < 400:
            return matrix
        try:
            before = cv2.computeECC(edges_of(laid), edges, mask)
            # The map found is from the template's frame to the input's; both are the original's here.
            unmoved = np.eye(2, 3, dtype=np.float32)
            _, found = cv2.findTransformECC(edges_of(laid), edges, unmoved, cv2.MOTION_AFFINE, stop, mask, smooth)
            step = _square(np.asarray(found, np.float64))
            moved = np.abs(step - np.eye(3))
            if moved[:2, :2].max() > 0.2 or moved[:2, 2].max() > 0.2 * max(size):
                continue
            better = np.asarray((step @ _square(matrix))[:2], np.float64)
            if cv2.computeECC(edges_of(_warp(small, better, size, ground)), edges, mask) > before:
                matrix = better
        except cv2.error:  # it did not converge
            continue
    return matrix
