"""Modulated deformable convolution (DCNv2) without compiled extensions.

Source: Zhu et al. 2019, Deformable ConvNets v2 (arXiv 1811.11168), equation 1:
    y(p) = sum_k  w_k * x(p + p_k + dp_k) * dm_k
x is sampled bilinearly and is zero outside the picture: a corner outside contributes nothing, so a sample half a
pixel over the border fades to half. Taps are in row order; offsets come as (dy, dx) pairs per tap.

Differences from the usual implementation: the four corners are gathered and weighted by one embedding-bag call
over channels-last rows, then one matrix product; coordinates are always float32, because rounding them to half
precision alone moves up to a fifth of the output pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Column elements (positions * taps * channels) held at once in evaluation: 2**25 fp32 elements are 128 MiB. The
#: 7x7 convolution of the large network at 1024 px would otherwise need 822 MB for its column buffer alone.
_COLUMN_LIMIT = 2**25


def deform_conv2d(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Convolve at learned positions: stride 1, same padding, one offset group.

    Args:
        x: (B, C, H, W) features.
        offset: (B, 2*k*k, H, W) displacements in pixels, (dy, dx) per tap in row order.
        mask: (B, k*k, H, W) modulation of each tap.
        weight: (O, C, k, k) kernel, k odd.
    Returns:
        (B, O, H, W), in the type of `x`.
    Source: Zhu et al. 2019, equation 1; border rule as in its reference code.
    """
    batch, channels, height, width = x.shape
    out_channels, _, kernel, _ = weight.shape
    taps = kernel * kernel
    positions = height * width

    rows = x.permute(0, 2, 3, 1).reshape(batch * positions, channels)
    matrix = weight.permute(2, 3, 1, 0).reshape(taps * channels, out_channels)  # (k*k*C, O)
    index, factor = _corners(offset.float(), mask.float(), kernel)  # (B*H*W, k*k, 4) each
    factor = factor.to(x.dtype)

    step = batch * positions
    if not torch.is_grad_enabled():
        step = max(1, min(step, _COLUMN_LIMIT // (taps * channels)))
    parts = []
    for start in range(0, batch * positions, step):
        bag = index[start : start + step].reshape(-1, 4)
        columns = F.embedding_bag(bag, rows, mode="sum", per_sample_weights=factor[start : start + step].reshape(-1, 4))
        parts.append(columns.view(-1, taps * channels) @ matrix)
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y.view(batch, height, width, out_channels).permute(0, 3, 1, 2)


def _corners(offset: Tensor, mask: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Row indices of the four corners of every sample, and their bilinear weight times the modulation.

    Both are (B*H*W, k*k, 4); indices count rows of the flattened (B*H*W, C) picture. Weights of corners outside the
    picture are zero and their indices are clamped to a valid row.
    """
    batch, taps, height, width = mask.shape
    device = offset.device
    offset = offset.view(batch, taps, 2, height, width).permute(0, 3, 4, 1, 2)  # (B, H, W, k*k, 2)
    mask = mask.permute(0, 2, 3, 1)  # (B, H, W, k*k)
    tap = torch.arange(kernel, device=device, dtype=torch.float32) - kernel // 2
    tap_y = tap.repeat_interleave(kernel)
    tap_x = tap.repeat(kernel)
    y = torch.arange(height, device=device, dtype=torch.float32).view(-1, 1, 1) + tap_y + offset[..., 0]
    x = torch.arange(width, device=device, dtype=torch.float32).view(-1, 1) + tap_x + offset[..., 1]
    y0, x0 = y.floor(), x.floor()
    fy, fx = y - y0, x - x0

    # Zero weight outside, before the indices are clamped.
    wy0 = (1 - fy) * ((y0 >= 0) & (y0 < height))
    wy1 = fy * ((y0 >= -1) & (y0 < height - 1))
    wx0 = (1 - fx) * ((x0 >= 0) & (x0 < width)) * mask
    wx1 = fx * ((x0 >= -1) & (x0 < width - 1)) * mask
    factor = torch.stack((wy0 * wx0, wy0 * wx1, wy1 * wx0, wy1 * wx1), dim=-1)

    # Clamping in float first keeps wild offsets (up to infinity) from overflowing the integers.
    iy0 = y0.clamp(-1, height).long()
    ix0 = x0.clamp(-1, width).long()
    row0 = iy0.clamp(0, height - 1) * width
    row1 = (iy0 + 1).clamp(0, height - 1) * width
    col0 = ix0.clamp(0, width - 1)
    col1 = (ix0 + 1).clamp(0, width - 1)
    first = torch.arange(batch, device=device).view(-1, 1, 1, 1) * (height * width)
    index = torch.stack((row0 + col0, row0 + col1, row1 + col0, row1 + col1), dim=-1) + first.unsqueeze(-1)
    return index.view(-1, taps, 4), factor.reshape(-1, taps, 4)


class DeformableConv2d(nn.Module):
    """A deformable convolution that predicts its own offsets and modulation from its input.

    Modulation is 2 * sigmoid(.), so that a zero-initialised layer starts as a plain convolution.
    Shapes: (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        taps = kernel_size**2
        self.offset_conv = nn.Conv2d(in_channels, 2 * taps, kernel_size, padding=padding)
        self.modulator_conv = nn.Conv2d(in_channels, taps, kernel_size, padding=padding)
        self.regular_conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        for conv in (self.offset_conv, self.modulator_conv):
            nn.init.zeros_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        mask = 2 * self.modulator_conv(x).float().sigmoid()
        return deform_conv2d(x, self.offset_conv(x), mask, self.regular_conv.weight)
