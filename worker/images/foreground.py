"""The foreground's own colours under soft edges.

Source: Germer et al. 2021, "Fast Multi-Level Foreground Estimation" (ICPR 2020, arXiv 2006.14970), equations 2-6.
Foreground F and background B minimise, over all pixels i and their neighbours j,

    (a_i F_i + (1 - a_i) B_i - I_i)^2 + sum_j (eps + omega |a_i - a_j|) ((F_i - F_j)^2 + (B_i - B_j)^2)

solved per pixel as a 2x2 system, from a small picture up, each level starting from the one before. Differences: all
pixels of a level are updated at once (Jacobi, so it runs on a GPU); the first level is 4 px, not 1 px, and starts from
the mean colours; levels end at 512 px, and at full size each soft pixel solves the same 2x2 system once, with the
enlarged colours in place of its neighbours'.

The same text runs on NumPy arrays (CPU) and on tensors (CUDA): only what `ArrayLibrary` lists differs, and that a
card relaxes a level by a kernel of our own where it can (worker/nets/fast/kernels.py). Many tiny operations are
cheaper in NumPy: a 64 px picture took torch 9 ms of CPU time, and 54 where its idle threads spin; NumPy takes 2
(docs/performance.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
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
#: Numbers of a plane up to which several planes are computed in one call: 64x64 takes half the time then, 512x512 more
#: (six copies of every factor no longer fit into the cache).
_TOGETHER = 20_000
#: eps and omega of the equation, as in the paper.
_SMOOTHNESS, _EDGE_WEIGHT = 1e-5, 1.0
#: Weight of the enlarged colours against the pixel's own equation at full size.
_PRIOR = 0.02


@dataclass(frozen=True)
class ArrayLibrary:
    """What NumPy and torch call differently.

    Attributes:
        stretch: (C, h, w), W -> (C, h, W), bilinear.
        halve: (C, H, W) -> (C, ceil(H/2), ceil(W/2)), means of 2x2 pixels; at an odd end, of those that are left.
        zeros: a shape and an array to be like -> zeros of that shape.
        vector: a one-dimensional NumPy array and an array to be like -> the same numbers there.
        rows: (n,), k -> (k, n), the same numbers in each row.
        multiply, subtract: two arrays, and `out` for their product or difference.
        add_product: two arrays, and a third that their product is added to.
        add_scaled: an array, another, its factor, and where the sum goes.
        clip: an array, a smallest and a largest value, and `out`.
    """

    stretch: Callable[[Array, int], Array]
    halve: Callable[[Array], Array]
    zeros: Callable[[tuple[int, ...], Array], Array]
    vector: Callable[[Array, Array], Array]
    rows: Callable[[Array, int], Array]
    multiply: Callable[..., Array]
    subtract: Callable[..., Array]
    add_product: Callable[[Array, Array, Array], Array]
    add_scaled: Callable[[Array, Array, float, Array], Array]
    clip: Callable[..., Array]


def _stretch_numpy(x: Array, width: int) -> Array:
    if x.shape[2] == width:
        return np.ascontiguousarray(x)
    size = (width, x.shape[1])
    return np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in x])


def _stretch_torch(x: Array, width: int) -> Array:
    size = (x.shape[1], width)
    return F.interpolate(x.unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0].contiguous()


def _halve_numpy(x: Array) -> Array:
    for axis in (1, 2):
        even, odd = (x[:, ::2], x[:, 1::2]) if axis == 1 else (x[..., ::2], x[..., 1::2])
        mean = even.copy()
        short = mean[:, : odd.shape[1], : odd.shape[2]]
        short += odd
        short *= 0.5
        x = mean
    return x


NUMPY = ArrayLibrary(
    stretch=_stretch_numpy,
    halve=_halve_numpy,
    zeros=lambda shape, _: np.zeros(shape, np.float32),
    vector=lambda x, _: x,
    rows=lambda x, count: x[None].repeat(count, axis=0),
    multiply=np.multiply,
    subtract=np.subtract,
    # OpenCV's go through the numbers once, NumPy would twice.
    add_product=cv2.accumulateProduct,
    add_scaled=lambda x, y, factor, out: cv2.scaleAdd(y, factor, x, out),
    clip=np.ndarray.clip,
)
TORCH = ArrayLibrary(
    stretch=_stretch_torch,
    halve=lambda x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False),
    zeros=lambda shape, like: torch.zeros(shape, device=like.device),
    vector=lambda x, like: torch.from_numpy(x).to(like.device),
    rows=lambda x, count: x.expand(count, -1),
    multiply=torch.mul,
    subtract=torch.sub,
    add_product=lambda x, y, out: torch.addcmul(out, x, y, out=out),
    add_scaled=lambda x, y, factor, out: torch.add(x, y, alpha=factor, out=out),
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
        levels.append(lib.halve(levels[-1]))
    both = _mean_colours(levels[-1])
    kernels = _own_kernels(image) if isinstance(image, Tensor) else None
    for now in reversed(levels):
        h, w = now.shape[1:]
        iterations = _SMALL_ITERATIONS if max(h, w) <= _SMALL else _ITERATIONS
        if kernels is not None:
            both = kernels.relax(now, both, iterations, _SMOOTHNESS, _EDGE_WEIGHT, _MOMENTUM)
        else:
            both = _relax(now, both if both.shape[1:] == (1, 1) else _double(both, h, w), iterations)
    return both


def _own_kernels(x: Tensor) -> ModuleType | None:
    from worker.nets.fast import own  # here: pictures need none of the networks

    return own.kernels_for(x)


def _double(x: Array, height: int, width: int) -> Array:
    """(C, ceil(H/2), ceil(W/2)) -> (C, H, W), each pixel four times."""
    out = library_of(x).zeros((x.shape[0], height, width), x)
    for rows in (0, 1):
        for columns in (0, 1):
            part = out[:, rows::2, columns::2]
            part[...] = x[:, : part.shape[1], : part.shape[2]]
    return out


def _mean_colours(level: Array) -> Array:
    """The mean colour of what is foreground and of what is background, as a (6, 1, 1) start."""
    image, alpha, seen = level[:3], level[3], level[4]
    both = library_of(level).zeros((6, 1, 1), level)
    for start, weight in ((0, alpha), (3, 1 - alpha)):
        # No number comes back from a card in between: it would wait for all that was asked of it before.
        total = (weight * seen).sum().clip(1e-4)
        both[start : start + 3, 0, 0] = (image * weight).sum((1, 2)) / total
    return both.clip(0, 1)


def _relax(level: Array, both: Array, iterations: int) -> Array:
    """Solve every pixel's 2x2 system with its neighbours' last colours, `iterations` times: (6, h, w).

    Args:
        level: (5, h, w): colours times `seen`, alpha, `seen`. both: (6, h, w) to start from.
    """
    lib = library_of(level)
    _, h, w = level.shape
    # Planes are rows of numbers, each pixel's neighbours the same rows a step aside: one long loop for an operation in
    # place of one for each row of pixels. The picture is one pixel larger on each side, where `seen` is 0, so nothing
    # beyond the border has any weight; a row more at either end, and every step stays inside.
    row = w + 2
    count = (h + 2) * row
    inside = slice(row, row + count)

    def pixels(rows: Array) -> Array:
        return rows[:, inside].reshape(rows.shape[0], h + 2, row)[:, 1:-1, 1:-1]

    def around(rows: Array) -> list[Array]:
        return [rows[:, row + step : row + step + count] for step in (-row, row, -1, 1)]

    known = lib.zeros((5, count + 2 * row), level)
    pixels(known)[...] = level
    alpha, seen = known[3, inside], known[4, inside]
    # The difference to the pixel a step ahead is, from there, the one to the pixel a step back.
    weights = []
    for step in (row, 1):
        apart = _SMOOTHNESS + _EDGE_WEIGHT * abs(known[3, step:] - known[3, :-step])
        for start in (row - step, row):
            beside = row + (step if start == row else -step)
            weights.append(apart[start : start + count] * known[4, beside : beside + count])
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
    colours = known[:3, inside]  # times `seen`, which is what the right-hand side asks for
    fixed = lib.zeros((6, count), level)
    fixed[:3], fixed[3:] = colours * (a * to_fore + b * across), colours * (a * across + b * to_back)

    padded = lib.zeros((6, count + 2 * row), level)
    pixels(padded)[...] = both
    now = padded[:, inside]
    # Everything is written in place: fresh memory costs more than the arithmetic.
    sums, solved, change = (lib.zeros((6, count), level) for _ in range(3))
    # Few calls where they cost more than what they do, planes that fit into the cache where not.
    is_small = count <= _TOGETHER
    (weight, near), *others = zip(weights, around(padded), strict=True)
    neighbours = [part for other in others for part in _products(*other, sums, 6 if is_small else 1)]
    solutions = [
        part
        for factor, start, to in ((to_fore, 0, 0), (to_back, 3, 3), (across, 3, 0), (across, 0, 3))
        for part in _products(factor, sums[start : start + 3], solved[to : to + 3], 3 if is_small else 1)
    ]
    for _ in range(iterations):
        lib.multiply(weight, near, out=sums)
        for product in neighbours:
            lib.add_product(*product)
        # The change goes on a little further than it was asked to, as a heavy ball does.
        lib.add_scaled(fixed, change, _MOMENTUM, solved)
        for product in solutions:
            lib.add_product(*product)
        lib.subtract(solved, now, out=change)
        lib.clip(solved, 0, 1, out=now)
    return pixels(padded)


def _products(factor: Array, planes: Array, out: Array, together: int) -> list[tuple[Array, Array, Array]]:
    """`factor` (n,) for each of the planes (k, n), as operands for so many planes at once."""
    rows = library_of(factor).rows(factor, together)
    return [
        (rows, planes[start : start + together], out[start : start + together])
        for start in range(0, planes.shape[0], together)
    ]


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
