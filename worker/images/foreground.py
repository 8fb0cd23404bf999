"""The foreground's own colours under soft edges.

Source: Germer et al. 2021, "Fast Multi-Level Foreground Estimation" (ICPR 2020, arXiv 2006.14970), equations 2-6.
Foreground F and background B minimise, over all pixels i and their neighbours j,

    (a_i F_i + (1 - a_i) B_i - I_i)^2 + sum_j (eps + omega |a_i - a_j|) ((F_i - F_j)^2 + (B_i - B_j)^2)

solved per pixel as a 2x2 system, from a small picture up, each level starting from the one before. Differences: all
pixels of a level are updated at once (Jacobi, so it runs on a GPU); the first level is 4 px, not 1 px, and starts from
the mean colours; levels end at 512 px, and at full size each soft pixel solves the same 2x2 system once, with the
enlarged colours in place of its neighbours'.

The same text runs on NumPy arrays (CPU) and on tensors (CUDA): only what `ArrayLibrary` lists differs. Many tiny
operations are cheaper in NumPy: a 64 px picture took torch 9 ms of CPU time, and 54 where its idle threads spin; NumPy
takes 2 (docs/performance.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: A NumPy array or a tensor; planes first, (C, h, w), float32.
Array = Any

#: Longest side of the copy that colours are estimated on, in pixels.
ESTIMATE_SIDE = 512
#: Longest side of the first level, and iterations per level: many where a level is small and cheap (up to _SMALL px a
#: side), few above (Germer et al. use 10 and 2 with sequential updates; see benchmarks/edges.py).
_FIRST, _SMALL, _SMALL_ITERATIONS, _ITERATIONS = 8, 32, 6, 4
#: Share of the last change that is added to the next. Against none, the error falls by a third on flat art and by two
#: thirds on hair with a third of the small levels' iterations (benchmarks/edges.py); 0.9 gains no more.
_MOMENTUM = 0.85
#: eps and omega of the equation, as in the paper.
_SMOOTHNESS, _EDGE_WEIGHT = 1e-5, 1.0
#: Weight of the enlarged colours against the pixel's own equation at full size.
_PRIOR = 0.02


@dataclass(frozen=True)
class ArrayLibrary:
    """What NumPy and torch call differently.

    Attributes:
        stretch: (C, h, w), W -> (C, h, W), bilinear.
        zeros: a shape and an array to be like -> zeros of that shape.
        vector: a one-dimensional NumPy array and an array to be like -> the same numbers there.
        multiply: two arrays, and `out` for their product.
        clip: an array, a smallest and a largest value, and `out`.
    """

    stretch: Callable[[Array, int], Array]
    zeros: Callable[[tuple[int, ...], Array], Array]
    vector: Callable[[Array, Array], Array]
    multiply: Callable[..., Array]
    clip: Callable[..., Array]


def _stretch_numpy(x: Array, width: int) -> Array:
    size = (width, x.shape[1])
    return np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in x])


def _stretch_torch(x: Array, width: int) -> Array:
    size = (x.shape[1], width)
    return F.interpolate(x.unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0].contiguous()


NUMPY = ArrayLibrary(
    stretch=_stretch_numpy,
    zeros=lambda shape, _: np.zeros(shape, np.float32),
    vector=lambda x, _: x,
    multiply=np.multiply,
    clip=np.ndarray.clip,
)
TORCH = ArrayLibrary(
    stretch=_stretch_torch,
    zeros=lambda shape, like: torch.zeros(shape, device=like.device),
    vector=lambda x, like: torch.from_numpy(x).to(like.device),
    multiply=torch.mul,
    clip=torch.clamp,
)


def library_of(x: Array) -> ArrayLibrary:
    """The library whose array this is."""
    return TORCH if isinstance(x, Tensor) else NUMPY


def estimate(image: Array, alpha: Array, seen: Array) -> Array:
    """Foreground and background colours of a small picture.

    Args:
        image: (3, h, w) in 0..1. alpha: (h, w) in 0..1.
        seen: (h, w) in 0..1, how far a pixel's colour is to be believed.
    Returns:
        (6, h, w) in 0..1: foreground, then background.
    Source: Germer et al. 2021, algorithm 1.
    """
    lib = library_of(image)
    height, width = alpha.shape
    everything = lib.zeros((5, height, width), image)
    everything[:3] = image * seen
    everything[3], everything[4] = alpha, seen
    levels = [everything]
    while max(levels[-1].shape[1:]) > _FIRST:  # each from the one before: a third of the work of each from the first
        levels.append(_halve(levels[-1]))
    both = _mean_colours(levels[-1])
    for now in reversed(levels):
        h, w = now.shape[1:]
        iterations = _SMALL_ITERATIONS if max(h, w) <= _SMALL else _ITERATIONS
        both = _relax(now, both if both.shape[1:] == (1, 1) else _double(both, h, w), iterations)
    return both


def _halve(x: Array) -> Array:
    """(C, H, W) -> (C, ceil(H/2), ceil(W/2)), means of 2x2 pixels; at an odd end, of those that are left."""
    for axis in (1, 2):
        even, odd = _every_other(x, axis)
        mean = library_of(x).zeros(tuple(even.shape), x)
        mean[...] = even
        short = mean[:, : odd.shape[1], : odd.shape[2]]
        short += odd
        short *= 0.5
        x = mean
    return x


def _double(x: Array, height: int, width: int) -> Array:
    """(C, ceil(H/2), ceil(W/2)) -> (C, H, W), each pixel four times."""
    out = library_of(x).zeros((x.shape[0], height, width), x)
    for rows in (0, 1):
        for columns in (0, 1):
            part = out[:, rows::2, columns::2]
            part[...] = x[:, : part.shape[1], : part.shape[2]]
    return out


def _every_other(x: Array, axis: int) -> tuple[Array, Array]:
    return (x[:, ::2], x[:, 1::2]) if axis == 1 else (x[..., ::2], x[..., 1::2])


def _mean_colours(level: Array) -> Array:
    """The mean colour of what is foreground and of what is background, as a (6, 1, 1) start."""
    image, alpha, seen = level[:3], level[3], level[4]
    both = library_of(level).zeros((6, 1, 1), level)
    for start, weight in ((0, alpha), (3, 1 - alpha)):
        total = float((weight * seen).sum())
        for channel in range(3):
            both[start + channel] = float((image[channel] * weight).sum()) / max(total, 1e-4)
    return both.clip(0, 1)


def _relax(level: Array, both: Array, iterations: int) -> Array:
    """Solve every pixel's 2x2 system with its neighbours' last colours, `iterations` times: (6, h, w).

    Args:
        level: (5, h, w): colours times `seen`, alpha, `seen`. both: (6, h, w) to start from.
    """
    lib = library_of(level)
    _, h, w = level.shape
    alpha, seen = level[3], level[4]

    #: The four neighbours of every pixel are windows of a picture that is one pixel larger on each side. There `seen`
    #: is 0, so nothing beyond the border has any weight.
    def windows(padded: Array) -> list[Array]:
        return [padded[..., y : y + h, x : x + w] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))]

    around = lib.zeros((2, h + 2, w + 2), level)
    around[:, 1:-1, 1:-1] = level[3:]
    weights = [(_SMOOTHNESS + _EDGE_WEIGHT * abs(alpha - other[0])) * other[1] for other in windows(around)]
    total = weights[0] + weights[1] + weights[2] + weights[3] + 1e-8
    a, b = alpha, 1 - alpha
    # The determinant a00 a11 - a01^2, multiplied out: the difference of the two products would lose it in float32.
    inverse = 1 / (total * (seen * (a * a + b * b) + total))
    # The solution is linear in the neighbours' sums; everything else is computed once.
    to_fore, to_back, across = (
        (seen * b * b + total) * inverse,
        (seen * a * a + total) * inverse,
        -seen * a * b * inverse,
    )
    known = level[:3]  # colour times `seen`, which is what the right-hand side asks for
    fixed = lib.zeros((6, h, w), level)
    fixed[:3], fixed[3:] = known * (a * to_fore + b * across), known * (a * across + b * to_back)

    padded = lib.zeros((6, h + 2, w + 2), level)
    now = padded[:, 1:-1, 1:-1]
    now[...] = both
    (first, beside), *others = zip(weights, windows(padded), strict=True)
    # Everything is written in place: fresh memory costs more than the arithmetic.
    sums, part, change = (lib.zeros((6, h, w), level) for _ in range(3))
    for _ in range(iterations):
        lib.multiply(first, beside, out=sums)
        for weight, other in others:
            lib.multiply(weight, other, out=part)
            sums += part
        lib.multiply(across, sums, out=part)
        sums[:3] *= to_fore
        sums[3:] *= to_back
        sums[:3] += part[3:]
        sums[3:] += part[:3]
        sums += fixed
        # The change goes on a little further than it was asked to, as a heavy ball does.
        change *= _MOMENTUM
        sums -= now
        change += sums
        now += change
        lib.clip(now, 0, 1, out=now)
    return now


def solve_at(table: Array, pixels: Array, rows: Array, columns: Array, alpha: Array, height: int) -> Array:
    """Foreground colours of single pixels at full size.

    Args:
        table: (6, h, W), the colours of `estimate` stretched to the full width by the library's `stretch`: of the four
            corners of a bilinear sample only two are left to look up, which is what most of the time goes to.
        pixels: (3, n) in 0..1, their colours; overwritten. rows, columns: (n,) where they are. alpha: (n,) in 0..1.
        height: of the full picture.
    Returns:
        (3, n) in 0..1.
    """
    lib = library_of(table)
    _, h, w = table.shape
    # Half-pixel centres, clamped at the border.
    at = ((np.arange(height) + 0.5) * (h / height) - 0.5).clip(0, h - 1)
    below = np.floor(at).astype(np.int64).clip(0, max(0, h - 2))
    upper = lib.vector(below * w, table)[rows] + columns
    lower = upper + (w if h > 1 else 0)
    share = lib.vector((at - below).astype(np.float32), table)[rows]

    def colour(channel: int) -> Array:
        plane = table[channel].reshape(-1)
        value = plane[upper]
        value += (plane[lower] - value) * share
        return value

    rest_alpha = 1 - alpha
    gain = alpha / (alpha * alpha + rest_alpha * rest_alpha + _PRIOR)
    for channel in range(3):
        fore = colour(channel)
        # What the estimate does not explain of this pixel.
        rest = pixels[channel] - alpha * fore - rest_alpha * colour(channel + 3)
        pixels[channel] = (fore + gain * rest).clip(0, 1)
    return pixels


def estimate_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the copy that colours are estimated on."""
    scale = min(1.0, ESTIMATE_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
