"""Is this picture a design already, or a photograph of a printed thing? A cheap check, before anybody is paid.

A cut-out has transparent pixels. Digital artwork is flat or ends in hard edges; cloth, paper and wood under light have
soft shading nearly everywhere. So: brightness is blurred, which takes away grain and compression, and the share of
pixels around which it then varies a little is the answer. A shirt in front of a pure white studio ground has a border
as flat as any artwork's, so the border alone decides nothing.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from worker.images.picture import Picture

#: Share of transparent pixels from which a picture is a cut-out. Ours: less can be rounded corners or a soft rim.
CUTOUT_SHARE = 0.02
#: Share of softly shaded pixels from which a picture is a photograph. Ours, with the numbers below: the best of a scan
#: over blur, window and limits on held-out pictures, samples and drawn mock-ups (python -m benchmarks.extraction).
SHADED_SHARE = 0.22
#: Alpha up to which a pixel counts as transparent (0-255).
_TRANSPARENT = 12
#: Longest side that is looked at (px), blur (px), window (px), and deviation of brightness (levels of 255) in it that
#: is shading: less is flat, more is an edge.
_LONG_SIDE, _BLUR, _WINDOW, _SHADING = 512, 2.0, 15, (0.8, 6.0)

Kind = Literal["cutout", "flat_artwork", "photo"]


@dataclass(frozen=True)
class Look:
    """What a picture looks like.

    Attributes:
        kind: cutout, flat_artwork or photo.
        transparent, shaded: shares of its pixels, 0..1.
    """

    kind: Kind
    transparent: float
    shaded: float


def look_at(picture: Picture) -> Look:
    """Tell a cut-out, flat artwork and a photograph of a printed thing apart; some 10 ms, whatever the size."""
    transparent = 0.0 if picture.alpha is None else float((picture.alpha <= _TRANSPARENT).mean())
    scale = min(1.0, _LONG_SIDE / max(picture.height, picture.width))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = cv2.resize(picture.rgb, size, interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), _BLUR)
    mean = cv2.blur(smooth, (_WINDOW, _WINDOW))
    variance = cv2.blur(smooth * smooth, (_WINDOW, _WINDOW)) - mean * mean
    low, high = _SHADING
    shaded = float(((variance > low * low) & (variance < high * high)).mean())
    if transparent >= CUTOUT_SHARE:
        return Look("cutout", transparent, shaded)
    return Look("photo" if shaded >= SHADED_SHARE else "flat_artwork", transparent, shaded)
