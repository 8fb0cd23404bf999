"""The second pass of `options.detail: high`: where the art is, so that the network can look at it alone.

The network sees its square input, whatever the size. Art that fills a third of a picture is seen at a third of
the resolution; cut out with a margin and passed again, it gets all of it (ZhengPeng7/BiRefNet#247).
"""

import math

from torch import Tensor

from worker.images.picture import Picture

#: Alpha above which a pixel of the coarse mask is art; low, so that faint parts are inside the box.
_ART = 0.1
#: Free border around the art over the longer side of its box: the network wants to see background on all sides.
_MARGIN = 0.08
#: A box that fills this share of the picture gains too little resolution for a second pass.
_WORTH = 0.7

Box = tuple[int, int, int, int]


def art_box(mask: Tensor, height: int, width: int) -> Box | None:
    """Where the art is in a picture.

    Args:
        mask: (h, w) coarse mask in 0..1 of the whole picture, any size.
        height: of the picture, in pixels. width: likewise.
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
    return None if share > _WORTH else box


def crop(picture: Picture, box: Box) -> Picture:
    """The part of a picture inside a box: (top, left, bottom, right) in pixels."""
    top, left, bottom, right = box
    alpha = None if picture.alpha is None else picture.alpha[top:bottom, left:right].copy()
    return Picture(picture.rgb[top:bottom, left:right].copy(), alpha, picture.dpi)
