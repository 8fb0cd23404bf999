"""A sheet of the pictures that a method cuts out worst: picture, true alpha, found alpha, and the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.data import Sample
from training.measures import Scores

#: Side of one picture, pixels; pictures in a row of the sheet (each takes three squares).
SIDE, ACROSS = 150, 3
CAPTION = 16


def worst_sheet(
    path: Path,
    pairs: Sequence[Sample],
    scores: Sequence[Scores],
    method: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    count: int = 24,
) -> None:
    """Draw the `count` pairs of the lowest IoU, worst first, into a PNG."""
    order = sorted(range(len(pairs)), key=lambda number: scores[number].iou)[:count]
    rows = -(-len(order) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * (3 * SIDE + 8), rows * (SIDE + CAPTION + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(order):
        pair, found = pairs[number], scores[number]
        left, top = (place % ACROSS) * (3 * SIDE + 8), (place // ACROSS) * (SIDE + CAPTION + 4)
        height, width = pair.alpha.shape
        mask = (cv2.resize(method(pair.image), (width, height)) * 255).astype(np.uint8)
        for column, picture in enumerate((pair.image, pair.alpha, mask)):
            shown = Image.fromarray(picture).convert("RGB")
            shown.thumbnail((SIDE, SIDE))
            sheet.paste(shown, (left + column * SIDE, top + CAPTION))
        words = f"{number}  {pair.kind} on {pair.ground}   IoU {found.iou:.2f}  MAE {found.mae:.3f}"
        draw.text((left + 2, top + 3), f"{words}  F {found.boundary:.2f}", fill="black")
    sheet.quantize(192).save(path, optimize=True)
