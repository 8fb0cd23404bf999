"""Masks and pictures become cutouts: clean colours under soft edges, nothing under alpha 0.

Opaque pixels keep their exact colours; the mask is never re-derived, so soft alpha stays. How edge colours are found is
in foreground.py. On CUDA everything happens on the device; on the CPU the full-size steps are 8-bit (OpenCV, NumPy) and
only soft pixels are ever floats, which is four times as fast as whole planes of floats (benchmarks/pixels.py).
"""

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.images.foreground import NUMPY, TORCH, estimate, estimate_size, solve_at
from worker.images.picture import Picture

#: Edge pixels handled at once. On the CPU so few that their floats stay in the cache; on CUDA as many as bound the
#: memory of a fully translucent 24-megapixel mask.
_CPU_CHUNK, _CUDA_CHUNK = 32_768, 2_000_000
#: Alpha levels (of 255) this close to an end count as the end. A sigmoid never reaches 0 or 1, and the haze of 1/255
#: that it leaves over a whole canvas is printed as a box around the art.
_SNAP = 2
_LEVELS = np.arange(256)
_SNAPPED = np.where(_LEVELS <= _SNAP, 0, np.where(_LEVELS >= 255 - _SNAP, 255, _LEVELS)).astype(np.uint8)
#: 1 for every level that is neither end.
_IS_SOFT = ((_LEVELS > 0) & (_LEVELS < 255)).astype(np.uint8)

Pixels = npt.NDArray[np.uint8]


def cut_out(picture: Picture, mask: Tensor, *, clean: bool = True) -> Pixels:
    """Apply a mask to a picture.

    Args:
        picture: the prepared side.
        mask: (H, W) float in 0..1 at the picture's size, on the device that shall do the work.
        clean: take the old background out of soft edges; False keeps the source's own colours.
    Returns:
        (H, W, 4) uint8 straight-alpha RGBA. Alpha is the mask times the picture's own alpha, so what was transparent
        stays so; colour under alpha 0 is 0.
    Raises:
        ValueError: mask and picture differ in size.
    """
    if tuple(mask.shape) != (picture.height, picture.width):
        raise ValueError(f"the mask is {tuple(mask.shape)}, the picture {(picture.height, picture.width)}")
    if mask.device.type == "cpu":
        level = cv2.LUT(cv2.convertScaleAbs(mask.float().numpy(), alpha=255), _SNAPPED)
        return _cut_out_cpu(picture, np.asarray(level, np.uint8), clean=clean)
    return _cut_out_device(picture, mask, clean=clean)


# --- CPU ------------------------------------------------------------------------------------------------------
def _cut_out_cpu(picture: Picture, level: Pixels, *, clean: bool) -> Pixels:
    """`level`: the mask in 0..255."""
    out = np.empty((*level.shape, 4), np.uint8)
    cv2.mixChannels([picture.rgb, level], [out], [0, 0, 1, 1, 2, 2, 3, 3])
    if clean:
        _clean_cpu(out, picture.alpha)
    alpha = level
    if picture.alpha is not None:
        alpha = np.asarray(cv2.multiply(level, picture.alpha, scale=1 / 255), np.uint8)
        cv2.insertChannel(alpha, out, 3)
    # Four bytes at once: where alpha is 0, the whole pixel is.
    np.putmask(out.view(np.uint32)[..., 0], alpha == 0, 0)
    return out


def _clean_cpu(out: Pixels, own_alpha: Pixels | None) -> None:
    """Replace the colours of soft pixels: `out` is (H, W, 4), the picture's colours and the mask in 0..255."""
    # Four times as fast on bool as on uint8.
    edge = np.flatnonzero(cv2.LUT(cv2.extractChannel(out, 3), _IS_SOFT).view(np.bool_))
    if not edge.size:
        return
    height, width = out.shape[:2]
    small = _shrink(out)
    seen = (
        np.ones_like(small[3]) if own_alpha is None else _shrink(np.asarray(cv2.merge((own_alpha,) * 3), np.uint8))[0]
    )
    table = NUMPY.stretch(estimate(small[:3], small[3], seen), width)
    flat = out.view(np.uint32).reshape(-1)
    for start in range(0, edge.size, _CPU_CHUNK):
        part = edge[start : start + _CPU_CHUNK]
        rows, columns = np.divmod(part, width)
        quads = flat.take(part).view(np.uint8).reshape(-1, 4)
        # Planes, not pixels: loops of three are what NumPy is slow at.
        planes = quads.T.astype(np.float32) / 255
        colours = solve_at(table, planes[:3], rows, columns, planes[3], height)
        quads[:, :3] = np.rint(colours * 255).T
        flat[part] = quads.view(np.uint32)[:, 0]


def _shrink(pixels: Pixels) -> npt.NDArray[np.float32]:
    """(H, W, C) uint8 -> (C, h, w) in 0..1, the size that colours are estimated at.

    C is 3 or 4: these torch shrinks in a tenth of the time that it, or OpenCV, takes for one channel.
    """
    size = estimate_size(*pixels.shape[:2])
    if size == pixels.shape[:2]:  # the same samples, without waking torch's threads for a small picture
        return np.divide(pixels.transpose(2, 0, 1), np.float32(255), dtype=np.float32, order="C")
    planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    shrunk = F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return np.asarray(shrunk[0].numpy(), np.float32) / np.float32(255)


# --- CUDA -----------------------------------------------------------------------------------------------------
def _cut_out_device(picture: Picture, mask: Tensor, *, clean: bool) -> Pixels:
    rgb = upload(picture.rgb, mask.device)
    own = None if picture.alpha is None else upload(picture.alpha, mask.device)
    level = torch.from_numpy(_SNAPPED).to(mask.device)[(mask * 255).round_().long()]
    out = torch.empty((*mask.shape, 4), dtype=torch.uint8, device=mask.device)
    out[..., :3] = clean_colours(rgb, level.float() / 255, own) if clean else rgb
    out[..., 3] = level if own is None else (level.float() / 255 * own).round_().to(torch.uint8)
    out[..., :3] *= (out[..., 3:] > 0).to(torch.uint8)
    return out.cpu().numpy()


def clean_colours(rgb: Tensor, mask: Tensor, own_alpha: Tensor | None = None) -> Tensor:
    """The foreground's own colours, with the old background taken out of soft edges, on the tensors' device.

    Args:
        rgb: (H, W, 3) uint8.
        mask: (H, W) float in 0..1.
        own_alpha: (H, W) uint8 alpha of the source; what is transparent there lends its colour to nobody.
    Returns:
        (H, W, 3) uint8; equal to `rgb` wherever the mask is 0 or 1.
    """
    edge = ((mask > 0) & (mask < 1)).flatten().nonzero().squeeze(1)
    if not edge.numel():
        return rgb
    height, width = mask.shape
    size = estimate_size(height, width)

    def small(x: Tensor) -> Tensor:  # (C, H, W) -> (C, h, w) float
        x = x.unsqueeze(0).float()
        return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)[0]

    alpha = small(mask.unsqueeze(0))[0].clamp(0, 1)
    seen = torch.ones_like(alpha) if own_alpha is None else (small(own_alpha.unsqueeze(0))[0] / 255).clamp(0, 1)
    table = TORCH.stretch(estimate(small(rgb.permute(2, 0, 1)) / 255, alpha, seen), width)
    out, flat_mask = rgb.reshape(-1, 3).clone(), mask.flatten()
    for part in torch.split(edge, _CUDA_CHUNK):
        pixels = out[part].T.float() / 255
        colours = solve_at(table, pixels, part // width, part % width, flat_mask[part], height)
        out[part] = (colours * 255).round().T.to(torch.uint8)
    return out.view(height, width, 3)


def upload(pixels: Pixels, device: torch.device) -> Tensor:
    """8-bit pixels on the device; through page-locked memory on CUDA, which copies faster and beside the kernels."""
    x = torch.from_numpy(pixels)
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
