"""What the colours say about a first mask: cues for the stage that refines it.

Where a mask is sure, it tells what colours the ink and the ground have. Both are filled into the rest of the picture,
and each pixel lies somewhere between the two: where, is an estimate of its alpha. It is sharp where the picture is and
right where the fills are; where the colours are others or hardly differ it is wrong. So the next stage sees several
such estimates beside how far they can be trusted, and learns what to take.

Sources: Wang and Cohen 2007, Optimized color sampling for robust matting (CVPR), equation 2, for alpha as a place
between two colours; Gortler et al. 1996, The lumigraph (SIGGRAPH), for filling by pull and push. Differences: a
constant is added to the squared distance of the two colours, so that the place of colours that hardly differ goes to 0
instead of to noise; levels are plain means, whose weights do not saturate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Alphas from which on a pixel's colour counts as ink: generous and strict. Below the third it counts as ground.
INK, SURE_INK, GROUND = 0.6, 0.9, 0.1
#: A pixel's ink is what is left of its colour without the ground, divided by its alpha; by no less than this.
LEAST_ALPHA = 0.15
#: Side of the squares, in half-size pixels, over which that is averaged.
CELL = 8
#: Side of the surroundings of a pixel, in such squares.
NEAR = 5
#: Weight of what the next coarser level says, where 1 is a level full of pixels that count.
PUSH = 0.01
#: Keeps what no pixel says anything about from dividing by zero; far below one pixel of a picture.
NOTHING = 1e-8
#: Added to a squared difference of two colours (normalised units) before something is divided by it.
FLOOR = 0.05
#: Channels of `colour_cues`: three for each of three inks, the mask itself twice, and how much of both colours is near.
CUES = 12


def colour_cues(picture: Tensor, logits: Tensor) -> Tensor:
    """Estimates of alpha from the colours of what a mask is sure of, and how far to trust them.

    Args:
        picture: (B, 3, H, W), normalised; H and W are multiples of 16.
        logits: (B, 1, H, W), the mask's.
    Returns:
        (B, 12, H, W) float32. For ink as the mask's generous part, its strict part, and all of it less the ground tell
        it: the place between ground (about 0) and ink (about 1), -0.5..1.5; the distance of the two colours, 0..4; how
        far the pixel is from that place, 0..4. Then the logits, -2..2 for -8..8; the alpha; and how much of the
        surroundings says what ground and generous ink are, 0..1. No gradient flows through it.
    """
    picture, logits = picture.detach().float(), logits.detach().float()
    alpha = logits.sigmoid()
    weights = (
        ((alpha - INK) / (1 - INK)).clamp(0, 1),
        ((alpha - SURE_INK) / (1 - SURE_INK)).clamp(0, 1),
        ((GROUND - alpha) / GROUND).clamp(0, 1),
    )
    seeds = _halved(torch.cat([torch.cat((picture * weight, weight), dim=1) for weight in weights]))
    fills = filled(seeds).chunk(3)
    ground = _enlarged(fills[2], picture)
    here = picture - ground
    inks = (fills[0], fills[1], _ink_of_all(picture, alpha, fills[2]))
    cues = [part for ink in inks for part in _between(here, _enlarged(ink, picture) - ground)]
    near = F.avg_pool2d(F.avg_pool2d(seeds[:, 3:], CELL), NEAR, stride=1, padding=NEAR // 2)
    support = near / (near + PUSH)
    generous, _, sure_ground = support.chunk(3)
    return torch.cat((*cues, logits.clamp(-8, 8) / 4, alpha, _enlarged(generous * sure_ground, picture)), dim=1)


def filled(seeds: Tensor) -> Tensor:
    """Colours everywhere from colours here and there: (B, 4, h, w) colour x weight, and weight -> (B, 3, h, w).

    Where nothing has any weight the answer is 0.
    """
    levels = [seeds]
    while levels[-1].shape[2] % 2 == 0 and levels[-1].shape[3] % 2 == 0 and min(levels[-1].shape[2:]) > 2:
        levels.append(_halved(levels[-1]))
    whole = levels[-1].mean(dim=(2, 3), keepdim=True)
    colours = whole[:, :3] / (whole[:, 3:] + NOTHING)
    for level in reversed(levels):
        colours = (level[:, :3] + PUSH * _enlarged(colours, level)) / (level[:, 3:] + PUSH)
    return colours


def _ink_of_all(picture: Tensor, alpha: Tensor, ground: Tensor) -> Tensor:
    """The ink of which the surroundings consist if the mask is right there on the whole: (B, 3, H/2, W/2)."""
    half, cover = _halved(picture), _halved(alpha)
    ink = ground + (half - ground) / cover.clamp_min(LEAST_ALPHA)
    weight = cover * (cover > LEAST_ALPHA)
    return _enlarged(filled(F.avg_pool2d(torch.cat((ink * weight, weight), dim=1), CELL)), half)


def _between(here: Tensor, line: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each pixel's place between two colours, their distance, and the pixel's distance from its place; (B, 1, H, W).

    Args:
        here, line: (B, 3, H, W) the picture and the ink, both less the ground.
    """
    length = line.square().sum(dim=1, keepdim=True)
    place = ((here * line).sum(dim=1, keepdim=True) / (length + FLOOR)).clamp(-0.5, 1.5)
    off = (here - place * line).square().sum(dim=1, keepdim=True)
    return place, length.sqrt().clamp_max(4), off.sqrt().clamp_max(4)


def _halved(x: Tensor) -> Tensor:
    """Means of 2x2 pixels: (B, C, H, W), H and W even -> (B, C, H/2, W/2)."""
    if x.is_cuda:
        return F.avg_pool2d(x, 2)
    # On a CPU five times as fast as a pool of planes.
    rows = x[:, :, ::2] + x[:, :, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
