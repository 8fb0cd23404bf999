"""What leaves the machine when a design is extracted: pixels, and nothing else of the file."""

import io

import numpy as np
from PIL import Image

from worker.images.picture import Picture, Pixels

#: Longest side (px) and JPEG quality of what is sent: about the detail that the model looks at. Made anew from pixels,
#: so nothing else of the file (place, camera, names) leaves the machine.
_SENT_SIDE, _SENT_QUALITY = 2048, 92


def to_send(picture: Picture) -> bytes:
    """What is sent: a JPEG of at most _SENT_SIDE px, transparency on a ground that the art stands out from."""
    image = Image.fromarray(on_ground(picture))
    image.thumbnail((_SENT_SIDE, _SENT_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_SENT_QUALITY, subsampling=0)
    return file.getvalue()


def on_ground(picture: Picture) -> Pixels:
    """(H, W, 3) uint8: a picture without transparency, which is laid on a ground that the art stands out from."""
    if picture.alpha is None:
        return picture.rgb
    opacity = (picture.alpha / np.float32(255))[..., None]
    light = float((picture.rgb.mean(axis=2) * opacity[..., 0]).sum() / max(1.0, float(opacity.sum())))
    return np.asarray(picture.rgb * opacity + (48 if light > 128 else 255) * (1 - opacity), np.uint8)
