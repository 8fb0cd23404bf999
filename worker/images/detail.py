"""The second pass of `options.detail: high`: where the art is, so that the network can look at it alone.

The network sees its square input, whatever the size. Art that fills a third of a picture is seen at a third of
the resolution; cut out with a margin and passed again, it gets all of it (ZhengPeng7/BiRefNet#247).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from worker.images.picture import Picture
from worker.images.tensors import mask_at_size

#: Alpha above which a pixel of the coarse mask is art; low, so that faint parts are inside the box.
_ART = 0.1
#: Free border around the art over the longer side of its box: the network wants to see background on all sides.
_MARGIN = 0.08
#: Share of the picture up to which the art's box gets a second pass. Measured on plain grounds (benchmarks/detail.py):
#: the alpha error falls by 20 to 40 % up to a share of 0.35, by 17 to 19 % up to 0.7, and beyond by no more than noise.
_WORTH = 0.7

Box = tuple[int, int, int, int]


def full_mask(picture: Picture, run: Callable[[Picture], Tensor], *, detail: bool, worth: float = _WORTH) -> Tensor:
    """The mask of a picture at its own size, by one pass of the network or by two.

    Args:
        picture: the prepared side, or any part of one.
        run: one pass: a picture to its (h, w) float mask in 0..1, of any size.
        detail: look again at the art's box alone, where that gains enough.
        worth: largest share of the picture that the box may fill for that.
    Returns:
        (H, W) float32 in 0..1, on the device of `run`'s masks; after a second pass 0 outside the box.
    """
    mask = run(picture)
    box = art_box(mask, picture.height, picture.width, worth) if detail else None
    if box is None:
        return mask_at_size(mask, picture.height, picture.width)
    top, left, bottom, right = box
    full = torch.zeros(picture.height, picture.width, device=mask.device)
    full[top:bottom, left:right] = mask_at_size(run(crop(picture, box)), bottom - top, right - left)
    return full


def art_box(mask: Tensor, height: int, width: int, worth: float = _WORTH) -> Box | None:
    """Where the art is in a picture.

    Args:
        mask: (h, w) coarse mask in 0..1 of the whole picture, any size.
        height: of the picture, in pixels. width: likewise.
        worth: largest share of the picture that the box may fill.
    Returns:
        (top, left, bottom, right) in pixels of the picture, with a margin; None when there is no art, or its box is
        so large that a second pass would gain little.
    """
    art = mask > _ART
    rows, columns = art.any(dim=1).nonzero(), art.any(dim=0).nonzero()
    if not rows.numel():
        return None
    h, w = mask.shape
    top, bottom = int(rows[0]) / h * height, (int(rows[-1]) + 1) / h * height
    left, right = int(columns[0]) / w * width, (int(columns[-1]) + 1) / w * width
    margin = _MARGIN * max(bottom - top, right - left)
    box = (
        max(0, math.floor(top - margin)),
        max(0, math.floor(left - margin)),
        min(height, math.ceil(bottom + margin)),
        min(width, math.ceil(right + margin)),
    )
    share = (box[2] - box[0]) * (box[3] - box[1]) / (height * width)
    return None if share > worth else box


def crop(picture: Picture, box: Box) -> Picture:
    """The part of a picture inside a box: (top, left, bottom, right) in pixels."""
    top, left, bottom, right = box
    alpha = None if picture.alpha is None else picture.alpha[top:bottom, left:right].copy()
    return Picture(picture.rgb[top:bottom, left:right].copy(), alpha, picture.dpi)
