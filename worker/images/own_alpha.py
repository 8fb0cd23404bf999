"""Artwork that arrives already cut out: its own alpha is better than any mask.

A network's mask is coarse at full size. Multiplied with the exact alpha of a finished design it softens every outline
and eats thin strokes: of the opaque pixels of two sample designs, sent with their true alpha, the starter models made
15 to 30 % soft and lost 2 to 6 %.

A photograph is not cut out because it has some transparency: margins, rounded corners, a circle, the corners that
straightening leaves. Each of these frames is convex and the picture fills it, which designs seldom do. In doubt (a
round badge) the models cut: that costs some softness, while trusting a frame would leave the whole background in.
"""

import cv2
import numpy as np
import numpy.typing as npt

#: Alpha above which a pixel is visible; editors leave a level or two of dust.
_VISIBLE = 8
#: Share of the border that may be visible. Artwork that runs off the canvas on one spot is cut out all the same.
_BORDER_SHARE = 0.05
#: Shapes are judged on a copy of this longest side, in pixels, by majority, so that stray pixels do not count.
_SHAPE_SIDE = 512
#: A piece is a frame when it fills so much of its box, or nearly all of its convex hull (turned rectangles, ovals and
#: rounded corners come to 0.98 and more), and is so large a share of the visible; smaller ones are dots and letters.
_OF_BOX, _OF_HULL, _LARGE = 0.9, 0.97, 0.05
#: Share of the visible from which it is framed; a photograph may have a line of text below. Of the 50 designs in
#: tests/data, sent with their true alpha, 6 are taken for frames: two oval badges, a tent, three tilted pictures.
_FRAMED = 0.75


def is_cut_out(alpha: npt.NDArray[np.uint8] | None) -> bool:
    """True when transparency already separates the art from its background.

    Args:
        alpha: (H, W) uint8 of the source, or None for an opaque one.
    """
    if alpha is None:
        return False
    visible = np.asarray(cv2.threshold(alpha, _VISIBLE, 255, cv2.THRESH_BINARY)[1], np.uint8)
    border = np.concatenate((visible[0], visible[-1], visible[:, 0], visible[:, -1]))
    if border.mean() > _BORDER_SHARE * 255 or not cv2.hasNonZero(visible):
        return False
    return _framed_share(visible) < _FRAMED


def _framed_share(visible: npt.NDArray[np.uint8]) -> float:
    """Share of a 0/255 shape that is in large pieces that a frame would leave, 0..1."""
    height, width = visible.shape
    factor = -(-max(height, width) // _SHAPE_SIDE)  # whole, which makes the reduction several times faster
    size = (max(1, width // factor), max(1, height // factor))
    visible = visible[: size[1] * factor, : size[0] * factor]
    shape = cv2.threshold(cv2.resize(visible, size, interpolation=cv2.INTER_AREA), 127, 1, cv2.THRESH_BINARY)[1]
    total = cv2.countNonZero(shape)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(np.asarray(shape, np.uint8), connectivity=4)
    framed = 0
    for label in range(1, len(stats)):
        left, top, w, h, area = (int(value) for value in stats[label])
        if area < _LARGE * total:
            continue
        piece = np.asarray(labels[top : top + h, left : left + w] == label, np.uint8)
        if area >= _OF_BOX * w * h or area >= _OF_HULL * _hull_area(piece):
            framed += area
    return framed / total if total else 0.0


def _hull_area(piece: npt.NDArray[np.uint8]) -> int:
    """Pixels of the convex hull of a 0/1 shape."""
    outlines, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = cv2.convexHull(np.concatenate(outlines))
    return cv2.countNonZero(cv2.fillConvexPoly(np.zeros_like(piece), hull, 1.0))
