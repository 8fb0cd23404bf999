"""Masks and pictures become cutouts: clean colours under soft edges, nothing under alpha 0.

Source of the colour estimate: Germer et al. 2021, "Fast Multi-Level Foreground Estimation" (ICPR 2020, arXiv
2006.14970), equations 2-6. Foreground F and background B minimise, over all pixels i and their neighbours j,

    (a_i F_i + (1 - a_i) B_i - I_i)^2 + sum_j (eps + omega |a_i - a_j|) ((F_i - F_j)^2 + (B_i - B_j)^2)

solved per pixel as a 2x2 system, from a 1x1 picture up, each level starting from the one before. Differences: all
pixels of a level are updated at once (Jacobi, so it runs on a GPU); levels end at 512 px, and at full size each soft
pixel solves the same 2x2 system once, with the enlarged colours in place of its neighbours'. Opaque pixels keep their
exact colours; the mask is never re-derived, so soft alpha stays.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.images.picture import Picture

#: Longest side of the copy that colours are estimated on, in pixels.
_ESTIMATE_SIDE = 512
#: Iterations per level: many where a level is small and cheap (up to _SMALL px a side), few above (Germer et al. use
#: 10 and 2 with sequential updates; simultaneous ones need a little more, see benchmarks/edges.py).
_SMALL, _SMALL_ITERATIONS, _ITERATIONS = 32, 20, 4
#: eps and omega of the equation, as in the paper.
_SMOOTHNESS, _EDGE_WEIGHT = 1e-5, 1.0
#: Weight of the enlarged colours against the pixel's own equation at full size.
_PRIOR = 0.02
#: Edge pixels handled at once; bounds the memory of a fully translucent 24-megapixel mask.
_CHUNK = 2_000_000
#: Alpha levels (of 255) this close to an end count as the end. A sigmoid never reaches 0 or 1, and the haze of 1/255
#: that it leaves over a whole canvas is printed as a box around the art.
_SNAP = 2


def cut_out(picture: Picture, mask: Tensor, *, clean: bool = True) -> npt.NDArray[np.uint8]:
    """Apply a mask to a picture.

    Args:
        picture: the prepared side.
        mask: (H, W) float in 0..1 at the picture's size, on the device that shall do the work.
        clean: take the old background out of soft edges; False keeps the source's own colours.
    Returns:
        (H, W, 4) uint8 straight-alpha RGBA. Alpha is the mask times the picture's own alpha, so what was transparent
        stays so; colour under alpha 0 is 0.
    Raises:
        ValueError: mask and picture differ in size.
    """
    if tuple(mask.shape) != (picture.height, picture.width):
        raise ValueError(f"the mask is {tuple(mask.shape)}, the picture {(picture.height, picture.width)}")
    device = mask.device
    rgb = torch.from_numpy(picture.rgb).to(device)
    own = None if picture.alpha is None else torch.from_numpy(picture.alpha).to(device)

    level = (mask * 255).round_()
    level = torch.where(level <= _SNAP, 0, torch.where(level >= 255 - _SNAP, 255, level))
    mask = level / 255
    if own is not None:
        level = (mask * own).round_()
    out = torch.empty((*mask.shape, 4), dtype=torch.uint8, device=device)
    out[..., :3] = clean_colours(rgb, mask, own) if clean else rgb
    out[..., 3] = level.to(torch.uint8)
    out[..., :3] *= (out[..., 3:] > 0).to(torch.uint8)
    return out.cpu().numpy()


def clean_colours(rgb: Tensor, mask: Tensor, own_alpha: Tensor | None = None) -> Tensor:
    """The foreground's own colours, with the old background taken out of soft edges.

    Args:
        rgb: (H, W, 3) uint8.
        mask: (H, W) float in 0..1.
        own_alpha: (H, W) uint8 alpha of the source; what is transparent there lends its colour to nobody.
    Returns:
        (H, W, 3) uint8; equal to `rgb` wherever the mask is 0 or 1.
    Source: Germer et al. 2021 (see above).
    """
    edge = ((mask > 0) & (mask < 1)).flatten().nonzero().squeeze(1)
    if not edge.numel():
        return rgb
    height, width = mask.shape
    table, low_h, low_w = _estimate(rgb, mask, own_alpha)
    out = rgb.reshape(-1, 3).clone()
    flat_mask = mask.flatten()
    for start in range(0, edge.numel(), _CHUNK):
        part = edge[start : start + _CHUNK]
        rows, columns = part // width, part % width
        both = _sample(table, low_h, low_w, rows, columns, height, width)  # (n, 6): foreground, background
        fore, back = both[:, :3], both[:, 3:]
        a = flat_mask[part].unsqueeze(1)
        colour = out[part].float() / 255
        rest = colour - a * fore - (1 - a) * back  # what the estimate does not explain of this pixel
        colour = fore + a * rest / (a**2 + (1 - a) ** 2 + _PRIOR)
        out[part] = (colour.clamp(0, 1) * 255).round().to(torch.uint8)
    return out.view(height, width, 3)


def _estimate(rgb: Tensor, mask: Tensor, own_alpha: Tensor | None) -> tuple[Tensor, int, int]:
    """Smooth foreground and background colours on a small copy: ((h*w, 6) float in 0..1, h, w)."""
    height, width = mask.shape
    scale = min(1.0, _ESTIMATE_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))

    def small(x: Tensor) -> Tensor:  # (C, H, W) -> (1, C, h, w) float
        return F.interpolate(x.unsqueeze(0).float(), size=size, mode="bilinear", antialias=True, align_corners=False)

    if rgb.device.type == "cpu":  # 8-bit resize is much faster there
        image = F.interpolate(
            rgb.permute(2, 0, 1).unsqueeze(0), size=size, mode="bilinear", antialias=True, align_corners=False
        ).float()
    else:
        image = small(rgb.permute(2, 0, 1))
    alpha = small(mask.unsqueeze(0))[0, 0].clamp(0, 1)
    seen = torch.ones_like(alpha) if own_alpha is None else (small(own_alpha.unsqueeze(0))[0, 0] / 255).clamp(0, 1)
    both = _multi_level(image[0] / 255, alpha, seen)  # (6, h, w)
    return both.permute(1, 2, 0).reshape(-1, 6).contiguous(), size[0], size[1]


def _multi_level(image: Tensor, alpha: Tensor, seen: Tensor) -> Tensor:
    """Foreground and background colours of a small picture.

    Args:
        image: (3, h, w) in 0..1. alpha: (h, w) in 0..1.
        seen: (h, w) in 0..1, how far a pixel's colour is to be believed.
    Returns:
        (6, h, w) in 0..1: foreground, then background.
    Source: Germer et al. 2021, algorithm 1.
    """
    height, width = alpha.shape
    levels = max(1, math.ceil(math.log2(max(height, width, 2))))
    everything = torch.cat((image * seen, alpha.unsqueeze(0), seen.unsqueeze(0)))
    both = torch.zeros(6, 1, 1, device=image.device)
    for level in range(levels + 1):
        h, w = max(1, round(height ** (level / levels))), max(1, round(width ** (level / levels)))
        now = F.adaptive_avg_pool2d(everything.unsqueeze(0), (h, w))[0]
        s = now[4:5]
        both = F.interpolate(both.unsqueeze(0), size=(h, w), mode="nearest")[0]
        small = max(h, w) <= _SMALL
        both = _relax(now[:3] / s.clamp(min=1e-4), now[3:4], s, both, _SMALL_ITERATIONS if small else _ITERATIONS)
    return both


def _relax(image: Tensor, alpha: Tensor, seen: Tensor, both: Tensor, iterations: int) -> Tensor:
    """Solve every pixel's 2x2 system with its neighbours' last colours, `iterations` times: (6, h, w)."""
    _, h, w = alpha.shape
    #: The four neighbours of every pixel as windows of a picture that is one pixel larger on each side.
    windows = ((0, 1), (2, 1), (1, 0), (1, 2))

    def neighbours(x: Tensor) -> list[Tensor]:
        padded = F.pad(x, (1, 1, 1, 1))
        return [padded[:, y : y + h, x : x + w] for y, x in windows]

    # Outside the picture `seen` is padded with 0, so nothing beyond the border has any weight.
    weights = [
        (_SMOOTHNESS + _EDGE_WEIGHT * (alpha - other).abs()) * trust
        for other, trust in zip(neighbours(alpha), neighbours(seen), strict=True)
    ]
    total = torch.stack(weights).sum(0) + 1e-8
    a, b = alpha, 1 - alpha
    a00, a01, a11 = seen * a * a + total, seen * a * b, seen * b * b + total
    # The determinant a00 a11 - a01^2, multiplied out: the difference of the two products would lose it in float32.
    inverse = 1 / (total * (seen * (a * a + b * b) + total))
    # The solution is linear in the neighbours' sums; everything else is computed once.
    to_fore, across, to_back = a11 * inverse, -a01 * inverse, a00 * inverse
    known = seen * image
    fixed = torch.cat((known * (a * to_fore + b * across), known * (a * across + b * to_back)))
    for _ in range(iterations):
        around = neighbours(both)
        sums = weights[0] * around[0]
        for weight, other in zip(weights[1:], around[1:], strict=True):
            sums.addcmul_(weight, other)
        both = fixed.clone()
        both[:3].addcmul_(to_fore, sums[:3]).addcmul_(across, sums[3:])
        both[3:].addcmul_(across, sums[:3]).addcmul_(to_back, sums[3:])
        both.clamp_(0, 1)
    return both


def _sample(table: Tensor, h: int, w: int, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Bilinear values of a (h*w, C) table at pixels of a (height, width) picture: (n, C). Half-pixel centres."""
    y = ((rows + 0.5) * (h / height) - 0.5).clamp(0, h - 1)
    x = ((columns + 0.5) * (w / width) - 0.5).clamp(0, w - 1)
    y0, x0 = y.floor(), x.floor()
    fy, fx = y - y0, x - x0
    y0, x0 = y0.long(), x0.long()
    y1, x1 = (y0 + 1).clamp(max=h - 1), (x0 + 1).clamp(max=w - 1)
    index = torch.stack((y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1), dim=1)
    factor = torch.stack(((1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx), dim=1)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=factor)
