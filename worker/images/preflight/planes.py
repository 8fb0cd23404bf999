"""Planes: single channels as (H, W) uint8, mostly 0/255 shapes, and what morphology does to them.

Beyond the plane everything is 0, so a shape that touches the border ends there.
"""

import math
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.uint8]

#: Connected parts are looked for on a copy of at most about this many pixels: the full size takes 200 ms of labelling.
POOL_PIXELS = 4_000_000
#: Planes of at most so many pixels, and parts, are labelled on this thread alone: 64x64 with 12 parts takes 60 us, and
#: 45 and 400 of another thread's with OpenCV's labelling.
_FEW_PIXELS, _FEW_PARTS = 1 << 16, 64


def at_least(plane: Any, level: int) -> Plane:
    """255 where a plane reaches the level, else 0."""
    return as_plane(cv2.threshold(plane, level - 1, 255, cv2.THRESH_BINARY)[1])


def grown(plane: Plane, radius: int) -> Plane:
    """Each pixel becomes the largest within a square of that radius."""
    return as_plane(cv2.dilate(plane, square(radius)))


@cache
def square(radius: int) -> Plane:
    """A kernel of ones; always the same array, for reading."""
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


def shrunk(plane: Plane, kernel: Plane) -> Plane:
    """Each pixel becomes the smallest under the kernel; beyond the plane everything is 0."""
    return as_plane(cv2.erode(plane, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0.0,)))


def halved(plane: Plane) -> Plane:
    """A plane averaged over blocks of 2x2; an odd last row or column is dropped, a single one leaves nothing."""
    h, w = plane.shape[0] // 2, plane.shape[1] // 2
    return as_plane(cv2.resize(plane[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA)) if h and w else plane[:0]


def pooled(plane: Plane) -> tuple[Plane, int]:
    """A copy of at most about POOL_PIXELS whose pixels are the largest of a block, and the side of that block."""
    block = max(1, math.ceil(math.sqrt(plane.size / POOL_PIXELS)))
    if block == 1:
        return plane, 1
    return as_plane(cv2.dilate(plane, np.ones((block, block), np.uint8), anchor=(0, 0)))[::block, ::block], block


def components(shape: Plane) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The connected parts of a shape, which touch by sides or corners.

    Args:
        shape: (H, W), 0 outside.
    Returns:
        (H, W) labels from 1, 0 outside; (n, 4) box as left, top, width, height; (n,) pixels. Parts in reading
        order, as far as that goes.
    """
    if shape.size <= _FEW_PIXELS:
        # OpenCV wakes its threads for the smallest plane, which then look for more work for ten times as long.
        outlines, nesting = cv2.findContours(shape, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        # An outline without a parent is the outer one of a part; the others are holes.
        is_outer = nesting[0, :, 3] < 0 if outlines else ()
        starts = [outline[0, 0].tolist() for outline, is_part in zip(outlines, is_outer, strict=True) if is_part]
        if len(starts) <= _FEW_PARTS:
            starts.sort(key=lambda start: (start[1], start[0]))
            labels = -(shape > 0).astype(np.int32)
            found = [cv2.floodFill(labels, None, start, label, flags=8) for label, start in enumerate(starts, 1)]
            boxes = np.array([box for *_, box in found], np.int32).reshape(-1, 4)
            return labels, boxes, np.array([area for area, *_ in found], np.int32)
    _, numbered, stats, _ = cv2.connectedComponentsWithStats(shape, connectivity=8)
    return np.asarray(numbered, np.int32), np.asarray(stats[1:, :4], np.int32), np.asarray(stats[1:, 4], np.int32)


def parts(shape: Plane) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Of the connected parts: (n,) longer side and (n, 4) box as left, top, width, height."""
    _, boxes, _ = components(shape)
    return boxes[:, 2:].max(axis=1, initial=0), boxes


def as_plane(array: Any) -> Plane:
    """OpenCV's stubs promise any number type; these are all uint8."""
    out: Plane = array
    return out
