"""How far a mask is from the true alpha: the measures of segmentation and of matting.

Sources: boundary F: Perazzi et al. 2016, DAVIS (CVPR), with the tolerance of its published code; gradient and
connectivity error: Rhemann et al. 2009, A perceptually motivated online benchmark for image matting (CVPR), with its
parameters, over the whole picture (there is no trimap).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from worker.images import mask_at_size

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

#: Share of the picture's diagonal by which contours may differ and still match (DAVIS).
CONTOUR_TOLERANCE = 0.008
#: A far stricter one, pixels: what is seen of an edge in print.
FINE_TOLERANCE_PX = 2
#: Rhemann et al.: sigma of the Gaussian derivative, pixels; step between thresholds; what still counts as connected.
GRADIENT_SIGMA, CONNECTIVITY_STEP, CONNECTIVITY_SLACK = 1.4, 0.1, 0.15


class Scores(NamedTuple):
    """Quality of one mask, or the mean over many."""

    #: Mean absolute error of the alpha, 0..1.
    mae: float
    #: Intersection over union of alpha > 0.5, 0..1.
    iou: float
    #: The same without a threshold: sum of the smaller over sum of the larger alpha, 0..1.
    soft_iou: float
    #: F measure of the contours of alpha > 0.5 at DAVIS' tolerance, 0..1.
    boundary: float
    #: The same at two pixels.
    fine: float
    #: Squared difference of gradient magnitudes, summed over the picture, / 1000.
    gradient: float
    #: Difference of connectedness to the largest solid part, summed over the picture, / 1000.
    connectivity: float
    #: Share of pixels whose alpha is neither clearly 0 nor clearly 1 (0.05..0.95): how soft the mask is.
    soft: float

    @staticmethod
    def mean(scores: Sequence[Scores]) -> Scores:
        """The mean of each measure."""
        return Scores(*(round(float(value), 5) for value in np.mean(np.array(scores), axis=0)))


def score(mask: Floats, alpha: NDArray[np.uint8]) -> Scores:
    """Compare a mask with the true alpha.

    Args:
        mask: (h, w) float32, 0..1, of any size; it is resized to the alpha's as the service does it.
        alpha: (H, W) uint8.
    """
    found = mask_at_size(torch.from_numpy(mask), *alpha.shape).numpy()
    truth = (alpha / np.float32(255)).astype(np.float32)
    inside, true_inside = found > 0.5, truth > 0.5
    tolerance = int(np.ceil(CONTOUR_TOLERANCE * np.hypot(*alpha.shape)))
    return Scores(
        mae=float(np.abs(found - truth).mean()),
        iou=_ratio(float((inside & true_inside).sum()), float((inside | true_inside).sum())),
        soft_iou=_ratio(float(np.minimum(found, truth).sum()), float(np.maximum(found, truth).sum())),
        boundary=contour_f(inside, true_inside, tolerance),
        fine=contour_f(inside, true_inside, FINE_TOLERANCE_PX),
        gradient=gradient_error(found, truth) / 1000,
        connectivity=connectivity_error(found, truth) / 1000,
        soft=float(((found > 0.05) & (found < 0.95)).mean()),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def contour_f(inside: Bools, true_inside: Bools, tolerance_px: int) -> float:
    """Harmonic mean of the shares of each contour that lie within a distance of the other: (H, W) both -> 0..1.

    Two empty contours agree; one empty contour matches nothing. Source: Perazzi et al. 2016.
    """
    found, true = _contour(inside), _contour(true_inside)
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance_px + 1, 2 * tolerance_px + 1))
    precision = float(found[cv2.dilate(true, disc) > 0].sum() / found.sum())
    recall = float(true[cv2.dilate(found, disc) > 0].sum() / true.sum())
    return _ratio(2 * precision * recall, precision + recall)


def _contour(inside: Bools) -> NDArray[np.uint8]:
    """Pixels of a mask that have a neighbour outside it; the frame is no contour. (H, W) uint8, 0 or 1."""
    mask = inside.astype(np.uint8)
    return np.asarray(mask - cv2.erode(mask, np.ones((3, 3), np.uint8)), np.uint8)


def gradient_error(found: Floats, truth: Floats) -> float:
    """Sum of squared differences of the gradient magnitudes under a Gaussian derivative; (H, W) both, 0..1."""
    difference = _gradient(found) - _gradient(truth)
    return float((difference**2).sum())


def _gradient(alpha: Floats) -> Floats:
    reach = int(np.ceil(3 * GRADIENT_SIGMA))
    x = np.arange(-reach, reach + 1, dtype=np.float32)
    bell = np.exp(-(x**2) / (2 * GRADIENT_SIGMA**2))
    bell /= bell.sum()
    slope = -x * bell / GRADIENT_SIGMA**2
    across = cv2.sepFilter2D(alpha, cv2.CV_32F, slope, bell, borderType=cv2.BORDER_REPLICATE)
    down = cv2.sepFilter2D(alpha, cv2.CV_32F, bell, slope, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(np.hypot(across, down), np.float32)


def connectivity_error(found: Floats, truth: Floats) -> float:
    """Sum of differences of how connected each pixel is to the largest part that both have; (H, W) both, 0..1.

    A pixel's level is the highest threshold at which it still belongs to that part; it counts as disconnected by how
    far its alpha lies above. Source: Rhemann et al. 2009.
    """
    level = np.full(truth.shape, -1, np.float32)
    thresholds = np.arange(0, 1 + CONNECTIVITY_STEP, CONNECTIVITY_STEP, dtype=np.float32)
    for before, threshold in itertools.pairwise(thresholds):
        both = ((found >= threshold) & (truth >= threshold)).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(both, connectivity=4)
        largest = labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if count > 1 else np.zeros_like(both, bool)
        level[(level < 0) & ~largest] = before
    level[level < 0] = 1
    return float(np.abs(_connected(found, level) - _connected(truth, level)).sum())


def _connected(alpha: Floats, level: Floats) -> Floats:
    above = alpha - level
    return np.asarray(1 - above * (above >= CONNECTIVITY_SLACK), np.float32)
