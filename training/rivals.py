"""What the starter weights are compared with: classical methods that need no weights, on the same pictures.

Both take an (H, W, 3) uint8 RGB picture and give an (H, W) float32 mask, 0..1, as `evaluate.predict` does.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.float32]
Picture = NDArray[np.uint8]

#: Width of the frame that is taken for ground, as a share of the shorter side.
FRAME = 0.02


def grab_cut(image: Picture) -> Mask:
    """OpenCV's GrabCut, begun with a rectangle: what lies outside is ground, what lies inside may be design.

    Source: Rother et al. 2004, GrabCut (SIGGRAPH); five rounds, as in OpenCV's example.
    """
    height, width = image.shape[:2]
    frame = max(2, round(FRAME * min(height, width)))
    labels = np.zeros((height, width), np.uint8)
    ground, design = np.zeros((1, 65)), np.zeros((1, 65))
    inner = (frame, frame, width - 2 * frame, height - 2 * frame)
    cv2.setRNGSeed(0)  # its colour clusters begin at random
    cv2.grabCut(image[..., ::-1].copy(), labels, inner, ground, design, 5, cv2.GC_INIT_WITH_RECT)
    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD), np.float32)


def flat_key(image: Picture) -> Mask:
    """A colour key: how far each pixel is from the frame's median colour in CIE Lab, against the frame's own spread.

    Up to the distance that 95 % of the frame keeps (at least 3, a just visible step), a pixel is ground; from twice
    that and 6 more it is design; between, the alpha rises evenly.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    frame = max(2, round(FRAME * min(image.shape[:2])))
    border = np.ones(image.shape[:2], bool)
    border[frame:-frame, frame:-frame] = False
    distance = np.linalg.norm(lab - np.median(lab[border], axis=0), axis=2)
    low = max(3.0, float(np.quantile(distance[border], 0.95)))
    return np.asarray(np.clip((distance - low) / (low + 6), 0, 1), np.float32)


RIVALS: dict[str, Callable[[Picture], Mask]] = {"GrabCut": grab_cut, "flat-colour key": flat_key}
