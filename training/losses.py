"""What the starter weights are trained to minimise.

Source: Zheng et al. 2024, BiRefNet (arXiv 2401.03407), section 3.4: pixel (binary cross entropy), region (IoU) and
structure (SSIM) losses on the masks of every scale, and cross entropy on the predicted gradient maps.

Differences from the paper: our own weights for the terms (fewer steps, smaller network); SSIM with a box window and on
the full-size mask only, because the CPU pays for every window; an L1 term on the alpha itself, because the paper's
masks are binary and ours are not. Cross entropy and L1 count pixels near a contour more (Wei et al. 2020, F3Net), and
the soft role also minimises the difference of Laplacian pyramids (Hou and Liu 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Outputs(Protocol):
    """What `BiRefNet.forward_with_aux` gives: logits, coarse to fine."""

    masks: list[Tensor]
    gradients: list[Tensor]


@dataclass(frozen=True)
class Recipe:
    """Weights of the terms for one role."""

    bce: float = 1.0
    iou: float = 0.5
    ssim: float = 0.25
    l1: float = 1.0
    coarse: float = 0.3
    gradient: float = 0.15
    laplacian: float = 0.0
    #: How much more a pixel counts when its surroundings are all unlike it: 1 + boundary * (0..1).
    boundary: float = 4.0
    #: Slope of the target's edges: 1 keeps the soft alpha, larger ones push it towards 0 and 1 around one half.
    sharpness: float = 1.0


RECIPES = {
    "base": Recipe(),
    # Crisp: region, structure and contour count more, and semi-transparent targets are pushed towards 0 and 1. Both
    # differ little from the base: with the losses of before they lost 0.002 of IoU in five minutes, with these
    # 0.0008 (crisp) and none in two.
    "rmbg": Recipe(iou=0.75, ssim=0.35, l1=0.75, boundary=5.0, sharpness=2.0),
    # Soft: the alpha's own value counts most, and how it changes.
    "birefnet": Recipe(bce=0.75, l1=2.0, laplacian=0.5, boundary=3.0),
}


def sharpened(alpha: Tensor, slope: float) -> Tensor:
    """Steepen an alpha around one half: any shape, 0..1 in and out; slope 1 changes nothing."""
    return alpha if slope == 1 else ((alpha - 0.5) * slope + 0.5).clamp(0, 1)


def iou_loss(prob: Tensor, target: Tensor) -> Tensor:
    """One minus the soft intersection over union, mean over the batch; (B, 1, H, W) both, 0..1."""
    overlap = torch.minimum(prob, target).sum(dim=(1, 2, 3))
    union = torch.maximum(prob, target).sum(dim=(1, 2, 3))
    # The constant keeps an empty mask from dividing by zero; it is worth one pixel.
    return (1 - (overlap + 1) / (union + 1)).mean()


def box_mean(x: Tensor, window: int, stride: int = 1, padding: int = 0) -> Tensor:
    """Means of square windows, of what of each lies in the picture: down first, then across, which is far less work.

    (B, C, H, W) -> (B, C, (H + 2 * padding - window) // stride + 1, likewise).
    """
    down = F.avg_pool2d(x, (window, 1), (stride, 1), (padding, 0), count_include_pad=False)
    return F.avg_pool2d(down, (1, window), (1, stride), (0, padding), count_include_pad=False)


def ssim_loss(prob: Tensor, target: Tensor, window: int = 7) -> Tensor:
    """One minus the structural similarity under a box window, mean over everything; (B, 1, H, W) both, 0..1.

    Source: Wang et al. 2004, equation 13, with K1 = 0.01 and K2 = 0.03.
    """

    def mean(x: Tensor) -> Tensor:
        return box_mean(x, window, stride=2)

    mu_p, mu_t = mean(prob), mean(target)
    var_p = mean(prob * prob) - mu_p * mu_p
    var_t = mean(target * target) - mu_t * mu_t
    cov = mean(prob * target) - mu_p * mu_t
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mu_p * mu_t + c1) * (2 * cov + c2) / ((mu_p**2 + mu_t**2 + c1) * (var_p + var_t + c2))
    return (1 - similarity).mean()


def contour_weight(target: Tensor, boundary: float, window: int = 15) -> Tensor:
    """How much each pixel counts: 1 in even regions, up to 1 + boundary at contours; any (B, 1, H, W), 0..1.

    Source: Wei et al. 2020, F3Net (arXiv 1911.11445), the pixel position aware loss.
    """
    around = box_mean(target, window, padding=window // 2)
    return 1 + boundary * (around - target).abs()


def laplacian_loss(prob: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """Mean absolute difference of two Laplacian pyramids, each level counted twice the one above; (B, 1, H, W) both.

    Source: Hou and Liu 2019, Context-aware image matting (arXiv 1909.09725); with a box instead of a Gaussian.
    """
    difference = prob - target
    loss = difference.new_zeros(())
    for level in range(levels):
        small = F.avg_pool2d(difference, 2)
        band = difference - F.interpolate(small, size=difference.shape[2:], mode="nearest")
        loss = loss + 2**level * band.abs().mean()
        difference = small
    return loss


def gradient_target(image: Tensor, alpha: Tensor, size: tuple[int, int]) -> Tensor:
    """How strongly the picture changes inside the design.

    Args:
        image: (B, 3, H, W), normalised.
        alpha: (B, 1, H, W), 0..1.
        size: (h, w) of the result.
    Returns:
        (B, 1, h, w), 0..1.
    """
    grey = image.mean(dim=1, keepdim=True) * alpha
    # Differences to the right and down, kept at the same size by repeating the last row and column.
    padded = F.pad(grey, (0, 1, 0, 1), mode="replicate")
    steps = (padded[..., :-1, 1:] - grey).abs() + (padded[..., 1:, :-1] - grey).abs()
    return F.adaptive_max_pool2d(steps, size).clamp(0, 1)


def training_loss(outputs: Outputs, image: Tensor, alpha: Tensor, recipe: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all terms.

    Args:
        outputs: the network's masks and gradients, logits.
        image: (B, 3, H, W) the network's input.
        alpha: (B, 1, H, W) the true alpha, 0..1.
        recipe: the role's weights.
    Returns:
        The scalar to minimise, and its parts for the log, detached.
    """
    target = sharpened(alpha, recipe.sharpness)
    logits = outputs.masks[-1]
    prob = logits.sigmoid()
    weight = contour_weight(target, recipe.boundary)
    bce = F.binary_cross_entropy_with_logits(logits, target, weight)
    iou, ssim = iou_loss(prob, target), ssim_loss(prob, target)
    error = (prob - target).abs()
    l1 = error.mean()
    loss = recipe.bce * bce + recipe.iou * iou + recipe.ssim * ssim + recipe.l1 * (weight * error).mean()
    if recipe.laplacian:
        loss = loss + recipe.laplacian * laplacian_loss(prob, target)
    for coarse in outputs.masks[:-1]:
        small = F.adaptive_avg_pool2d(target, (coarse.shape[2], coarse.shape[3]))
        loss = loss + recipe.coarse * F.binary_cross_entropy_with_logits(coarse, small)
        loss = loss + recipe.coarse * recipe.iou * iou_loss(coarse.sigmoid(), small)
    for gradient in outputs.gradients:
        edges = gradient_target(image, alpha, (gradient.shape[2], gradient.shape[3]))
        loss = loss + recipe.gradient * F.binary_cross_entropy_with_logits(gradient, edges)
    parts = {"loss": loss, "bce": bce, "iou": iou, "ssim": ssim, "l1": l1}
    return loss, {name: value.detach() for name, value in parts.items()}
