"""Sheets of what methods make of pictures: the worst of a set, and the first of each kind of art."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.data import Sample
from training.measures import Scores

#: A picture in, its mask out: (H, W, 3) uint8 RGB -> float32 0..1 of any size.
Method = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
#: Side of one picture, pixels; pictures in a row of the sheet of the worst (each takes three squares).
SIDE, ACROSS = 150, 3
CAPTION, GAP = 16, 8
#: Side and the two greys of the squares that stand for transparent.
CHECK, LIGHT, DARK = 10, 235, 205


def worst_sheet(path: Path, pairs: Sequence[Sample], scores: Sequence[Scores], method: Method, count: int = 24) -> None:
    """Draw the `count` pairs of the lowest IoU, worst first, into a PNG: picture, true alpha, found alpha, numbers."""
    order = sorted(range(len(pairs)), key=lambda number: scores[number].iou)[:count]
    rows = -(-len(order) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * (3 * SIDE + GAP), rows * (SIDE + CAPTION + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(order):
        pair, found = pairs[number], scores[number]
        left, top = (place % ACROSS) * (3 * SIDE + GAP), (place // ACROSS) * (SIDE + CAPTION + 4)
        for column, picture in enumerate((pair.image, pair.alpha, as_alpha(method, pair))):
            _paste(sheet, picture, left + column * SIDE, top + CAPTION)
        words = f"{number}  {pair.kind} on {pair.ground}   IoU {found.iou:.2f}  MAE {found.mae:.3f}"
        draw.text((left + 2, top + 3), f"{words}  F {found.boundary:.2f}", fill="black")
    sheet.quantize(192).save(path, optimize=True)


def kinds_sheet(path: Path, pairs: Sequence[Sample], methods: Mapping[str, Method], pairs_across: int = 2) -> None:
    """Draw the first pair of each kind of art into a PNG: picture, true cutout, and each method's cutout."""
    first = list({pair.kind: pair for pair in reversed(pairs)}.values())[::-1]
    width = (2 + len(methods)) * SIDE + GAP
    rows = -(-len(first) // pairs_across)
    sheet = Image.new("RGB", (pairs_across * width, rows * (SIDE + CAPTION + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, pair in enumerate(first):
        left, top = (place % pairs_across) * width, (place // pairs_across) * (SIDE + CAPTION + 4)
        alphas = [pair.alpha, *(as_alpha(method, pair) for method in methods.values())]
        for column, picture in enumerate((pair.image, *(on_checkerboard(pair.image, alpha) for alpha in alphas))):
            _paste(sheet, picture, left + column * SIDE, top + CAPTION)
        titles = (f"{pair.kind} on {pair.ground}", "true cutout", *methods)
        for column, title in enumerate(titles):
            draw.text((left + column * SIDE + 2, top + 3), title, fill="black")
    sheet.quantize(255).save(path, optimize=True)


def as_alpha(method: Method, pair: Sample) -> NDArray[np.uint8]:
    """What a method finds, at the picture's size: (H, W) uint8."""
    height, width = pair.alpha.shape
    return np.asarray(np.rint(cv2.resize(method(pair.image), (width, height)) * 255), np.uint8)


def on_checkerboard(image: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture behind its alpha, over grey squares: (H, W, 3) uint8."""
    rows, columns = np.indices(alpha.shape) // CHECK
    board = np.where((rows + columns) % 2, LIGHT, DARK)[..., None]
    share = alpha[..., None] / 255
    return np.asarray(np.rint(image * share + board * (1 - share)), np.uint8)


def _paste(sheet: Image.Image, picture: NDArray[np.uint8], left: int, top: int) -> None:
    shown = Image.fromarray(picture).convert("RGB")
    shown.thumbnail((SIDE, SIDE))
    sheet.paste(shown, (left, top))
