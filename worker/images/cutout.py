"""Masks and pictures become cutouts: clean colours under soft edges, nothing under alpha 0.

Source of the colour estimate: Forte 2021, "Approximate Fast Foreground Colour Estimation" (ICIP 2021), equations 3-5:
    F^ = blur(F * a) / blur(a)      B^ = blur(B * (1 - a)) / blur(1 - a)      F = F^ + a (I - a F^ - (1 - a) B^)
run twice, with a wide and a narrow blur. Differences: the blurs run on a copy of at most 768 px and the last
equation at full size, only where alpha is neither 0 nor 1. Opaque pixels keep their exact colours; the mask is never
re-derived, so soft alpha stays.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.images.picture import Picture

#: Longest side of the copy that colours are estimated on, in pixels.
_ESTIMATE_SIDE = 768
#: Blur radii on that copy, in pixels: wide reaches over broad soft edges, narrow keeps local colour (Forte 2021).
_RADII = (64, 4)
#: Edge pixels handled at once; bounds the memory of a fully translucent 24-megapixel mask.
_CHUNK = 2_000_000
#: Alpha levels (of 255) this close to an end count as the end. A sigmoid never reaches 0 or 1, and the haze of 1/255
#: that it leaves over a whole canvas is printed as a box around the art.
_SNAP = 2


def cut_out(picture: Picture, mask: Tensor) -> npt.NDArray[np.uint8]:
    """Apply a mask to a picture.

    Args:
        picture: the prepared side.
        mask: (H, W) float in 0..1 at the picture's size, on the device that shall do the work.
    Returns:
        (H, W, 4) uint8 straight-alpha RGBA. Alpha is the mask times the picture's own alpha, so what was transparent
        stays so; colour under alpha 0 is 0.
    Raises:
        ValueError: mask and picture differ in size.
    """
    if tuple(mask.shape) != (picture.height, picture.width):
        raise ValueError(f"the mask is {tuple(mask.shape)}, the picture {(picture.height, picture.width)}")
    device = mask.device
    rgb = torch.from_numpy(picture.rgb).to(device)
    own = None if picture.alpha is None else torch.from_numpy(picture.alpha).to(device)

    level = (mask * 255).round_()
    level = torch.where(level <= _SNAP, 0, torch.where(level >= 255 - _SNAP, 255, level))
    mask = level / 255
    if own is not None:
        level = (mask * own).round_()
    out = torch.empty((*mask.shape, 4), dtype=torch.uint8, device=device)
    out[..., :3] = clean_colours(rgb, mask, own)
    out[..., 3] = level.to(torch.uint8)
    out[..., :3] *= (out[..., 3:] > 0).to(torch.uint8)
    return out.cpu().numpy()


def clean_colours(rgb: Tensor, mask: Tensor, own_alpha: Tensor | None = None) -> Tensor:
    """The foreground's own colours, with the old background taken out of soft edges.

    Args:
        rgb: (H, W, 3) uint8.
        mask: (H, W) float in 0..1.
        own_alpha: (H, W) uint8 alpha of the source; what is transparent there lends its colour to nobody.
    Returns:
        (H, W, 3) uint8; equal to `rgb` wherever the mask is 0 or 1.
    Source: Forte 2021, equations 3-5.
    """
    edge = ((mask > 0) & (mask < 1)).flatten().nonzero().squeeze(1)
    if not edge.numel():
        return rgb
    height, width = mask.shape
    table, low_h, low_w = _estimate(rgb, mask, own_alpha)
    out = rgb.reshape(-1, 3).clone()
    flat_mask = mask.flatten()
    for start in range(0, edge.numel(), _CHUNK):
        part = edge[start : start + _CHUNK]
        rows, columns = part // width, part % width
        both = _sample(table, low_h, low_w, rows, columns, height, width)  # (n, 6): foreground, background
        fore, back = both[:, :3], both[:, 3:]
        a = flat_mask[part].unsqueeze(1)
        colour = out[part].float() / 255
        colour = fore + a * (colour - a * fore - (1 - a) * back)
        out[part] = (colour.clamp(0, 1) * 255).round().to(torch.uint8)
    return out.view(height, width, 3)


def _estimate(rgb: Tensor, mask: Tensor, own_alpha: Tensor | None) -> tuple[Tensor, int, int]:
    """Smooth foreground and background colours on a small copy: ((h*w, 6) float in 0..1, h, w)."""
    height, width = mask.shape
    scale = min(1.0, _ESTIMATE_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))

    def small(x: Tensor) -> Tensor:  # (C, H, W) -> (1, C, h, w) float
        return F.interpolate(x.unsqueeze(0).float(), size=size, mode="bilinear", antialias=True, align_corners=False)

    if rgb.device.type == "cpu":  # 8-bit resize is much faster there
        image = F.interpolate(
            rgb.permute(2, 0, 1).unsqueeze(0), size=size, mode="bilinear", antialias=True, align_corners=False
        ).float()
    else:
        image = small(rgb.permute(2, 0, 1))
    image = image / 255
    a = small(mask.unsqueeze(0))
    seen = 1.0 if own_alpha is None else small(own_alpha.unsqueeze(0)) / 255

    fore = back = image
    fore_hat = back_hat = image
    for radius in _RADII:
        blurred = _box_blur(torch.cat((fore * a * seen, a * seen, back * (1 - a) * seen, (1 - a) * seen), 1), radius)
        fore_hat = blurred[:, 0:3] / (blurred[:, 3:4] + 1e-5)
        back_hat = blurred[:, 4:7] / (blurred[:, 7:8] + 1e-5)
        # Where no background is in reach, the old estimate stands.
        back_hat = torch.where(blurred[:, 7:8] > 1e-4, back_hat, back)
        fore_hat = torch.where(blurred[:, 3:4] > 1e-4, fore_hat, fore)
        fore = (fore_hat + a * (image - a * fore_hat - (1 - a) * back_hat)).clamp(0, 1)
        back = back_hat.clamp(0, 1)
    both = torch.cat((fore_hat, back_hat), dim=1)[0]  # (6, h, w)
    return both.permute(1, 2, 0).reshape(-1, 6).contiguous(), size[0], size[1]


def _box_blur(x: Tensor, radius: int) -> Tensor:
    """Mean over a (2*radius+1) square cut off at the borders, by running sums: (1, C, h, w) -> the same."""
    for dim in (2, 3):
        length = x.shape[dim]
        sums = F.pad(x.double().cumsum(dim), (1, 0) if dim == 3 else (0, 0, 1, 0))  # double: no drift over the row
        position = torch.arange(length, device=x.device)
        low = (position - radius).clamp(min=0)
        high = (position + radius + 1).clamp(max=length)
        shape = [1, 1, 1, 1]
        shape[dim] = length
        x = ((sums.index_select(dim, high) - sums.index_select(dim, low)) / (high - low).view(shape)).float()
    return x


def _sample(table: Tensor, h: int, w: int, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Bilinear values of a (h*w, C) table at pixels of a (height, width) picture: (n, C). Half-pixel centres."""
    y = ((rows + 0.5) * (h / height) - 0.5).clamp(0, h - 1)
    x = ((columns + 0.5) * (w / width) - 0.5).clamp(0, w - 1)
    y0, x0 = y.floor(), x.floor()
    fy, fx = y - y0, x - x0
    y0, x0 = y0.long(), x0.long()
    y1, x1 = (y0 + 1).clamp(max=h - 1), (x0 + 1).clamp(max=w - 1)
    index = torch.stack((y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1), dim=1)
    factor = torch.stack(((1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx), dim=1)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=factor)
