"""Modulated deformable convolution (DCNv2), written as its equation.

Source: Zhu et al. 2019, Deformable ConvNets v2 (arXiv 1811.11168), equation 1:
    y(p) = sum_k  w_k * x(p + p_k + dp_k) * dm_k
x is sampled bilinearly and is zero outside the picture: a corner outside contributes nothing, so a sample half a
pixel over the border fades to half. Taps are in row order; offsets come as (dy, dx) pairs per tap.

This is the plain form, for training and as the reference in tests; inference takes worker/nets/fast/deform.py.
Difference from the usual implementation: sampling coordinates are always float32, because rounding them to half
precision alone moves up to a fifth of the output pixels.
"""

import torch
from torch import Tensor, nn


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
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    row = torch.arange(height, device=x.device, dtype=torch.float32).view(-1, 1)
    column = torch.arange(width, device=x.device, dtype=torch.float32)
    offset, mask = offset.float(), mask.float()
    y = x.new_zeros(batch * height * width, out_channels)
    # Tap by tap: all columns of a 7x7 kernel at once would be 822 MB in the large network at 1024 px.
    for tap in range(kernel**2):
        sample_y = row + (tap // kernel - kernel // 2) + offset[:, 2 * tap]  # (B, H, W)
        sample_x = column + (tap % kernel - kernel // 2) + offset[:, 2 * tap + 1]
        sampled = _sample(rows, sample_y, sample_x, mask[:, tap])  # (B*H*W, C)
        y = y + sampled @ weight[:, :, tap // kernel, tap % kernel].t()
    return y.view(batch, height, width, out_channels).permute(0, 3, 1, 2)


def _sample(rows: Tensor, y: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Bilinear samples of a map with zeros around it, times `scale`.

    Args:
        rows: (B*H*W, C), the map. y, x, scale: (B, H, W) float32.
    Returns:
        (B*H*W, C), in the type of `rows`.
    """
    batch, height, width = y.shape
    first = torch.arange(batch, device=y.device).view(-1, 1, 1) * (height * width)
    top, left = y.floor(), x.floor()
    result: Tensor | None = None
    for corner_y, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for corner_x, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            # Clamping in float first keeps wild offsets (up to infinity) from overflowing the integers.
            r = corner_y.clamp(0, height - 1).long().clamp(0, height - 1)
            c = corner_x.clamp(0, width - 1).long().clamp(0, width - 1)
            weight = (weight_y * weight_x * inside * scale).to(rows.dtype)
            part = rows[(first + r * width + c).flatten()] * weight.view(-1, 1)
            result = part if result is None else result + part
    assert result is not None
    return result


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
