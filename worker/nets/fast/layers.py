"""Layers of the inference form: weights folded at load, activations channels-last, nothing trainable.

Feature maps are (B, H, W, C) tensors here; `as_nchw` shows one to torch's operators as channels-last without a copy.
"""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.nets.fast import own


def as_nchw(x: Tensor) -> Tensor:
    """(B, H, W, C) -> a (B, C, H, W) view in channels-last memory."""
    return x.permute(0, 3, 1, 2)


def as_nhwc(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous; no copy when `x` is channels-last already."""
    return x.permute(0, 2, 3, 1).contiguous()


def pixels_of_cells(image: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, H/side, W/side, C * side**2), contiguous; channels in the order (c, row, column)."""
    batch, channels, height, width = image.shape
    x = image.reshape(batch, channels, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // side, width // side, -1)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with corners aligned, as in the plain network. (B, H, W, C) -> (B, *size, C)."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    kernels = own.kernels_for(x)
    if kernels is not None:
        return cast(Tensor, kernels.resize(x, size))
    return as_nhwc(F.interpolate(as_nchw(x), size=size, mode="bilinear", align_corners=True))


def fold_batch_norm(norm: nn.Module, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer with the batch norm behind it folded in.

    Args:
        weight: (O, ...) of the layer before the norm. bias: (O,), or None for zeros.
    Returns:
        (weight, bias), float64 so that further folding loses nothing.
    """
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    folded = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return folded, shift if bias is None else shift + bias.double() * scale


#: Convolutions on tensor cores take channels by so many; others are several times slower.
_CHANNELS = 8


def takes_whole_groups(like: Tensor) -> bool:
    """Whether convolutions of this device and type are fast only where channels are multiples of _CHANNELS."""
    return _is_half_on_card(like)


def packs_weights(weight: Tensor) -> bool:
    """Whether oneDNN's linear layer with packed weights can be had: fp32 on a CPU that torch was built with it for."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Linear(nn.Module):
    """A linear layer with its activation and its shortcut: act(x @ W.T + b) [+ shortcut].

    On the CPU in fp32 it is oneDNN's operator on weights packed by `pack`: measured against F.linear and an own GELU,
    1.26 times as fast at 768 -> 3072 and 1.40 times at 192 -> 768 (GELU costs nothing there), 1.05-1.2 without.
    Elsewhere it is F.linear; on a card in half precision its activation may be in the product's kernel.
    """

    weight: Tensor | None
    bias: Tensor | None
    _packed: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none", *, like: Tensor) -> None:
        """
        Args:
            weight: (out, in). bias: (out,) or None.
            activation: "none", "relu" or "gelu" (the exact one).
            like: a tensor whose device and type the layer takes.
        """
        super().__init__()
        self.activation = activation
        weight = weight.detach().to(like).contiguous()
        self.register_buffer("bias", None if bias is None else bias.detach().to(like).contiguous())
        self.register_buffer("weight", weight)
        self._packed = None

    def pack(self) -> None:
        """Let oneDNN lay the weight out as its kernel reads it, where it can; the plain layout is given up."""
        if self.weight is not None and packs_weights(self.weight):
            # The row count is a hint for the layout only.
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 4096)
            self.weight = None

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(..., in) -> (..., out); `shortcut` has the output's shape."""
        if self._packed is not None:
            ops: Any = torch.ops.mkldnn
            if shortcut is not None and self.activation == "none":
                return ops._linear_pointwise.binary(x, shortcut, self._packed, self.bias, "add")
            # An exact GELU is algorithm "none" of this operator's.
            y = ops._linear_pointwise(x, self._packed, self.bias, self.activation, [], "none")
        else:
            assert self.weight is not None
            y = self._by_torch(x)
        return y if shortcut is None else y.add_(shortcut)

    def _by_torch(self, x: Tensor) -> Tensor:
        if self.activation == "none" or self.bias is None or not _is_half_on_card(x) or torch.compiler.is_compiling():
            return self._then_activated(x)
        rows = x.reshape(-1, x.shape[-1])
        key = ("linear", self.activation, x.device, x.dtype, tuple(rows.shape), rows.stride(), len(self.bias))
        y = own.fastest(key, [partial(self._then_activated, rows), partial(self._activated_inside, rows)])
        return y.view(*x.shape[:-1], -1)

    def _then_activated(self, x: Tensor) -> Tensor:
        y = F.linear(x, cast(Tensor, self.weight), self.bias)
        if self.activation == "relu":
            return F.relu_(y)
        return F.gelu(y) if self.activation == "gelu" else y

    def _activated_inside(self, rows: Tensor) -> Tensor:
        """With the activation in the product's kernel, before it rounds: (rows, in) -> (rows, out).

        On CUDA this GELU is the approximation by a hyperbolic tangent, which is off by up to 5e-4, half precision's
        rounding of a number above 1. In alpha it makes 3e-4 at most and 4e-5 on average (the tiny golden network at
        256 px, fp32, CPU); half precision itself makes ten times as much.
        """
        weight, use_gelu = cast(Tensor, self.weight).t(), self.activation == "gelu"
        return torch._addmm_activation(cast(Tensor, self.bias), rows, weight, use_gelu=use_gelu)


def _is_half_on_card(x: Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype.itemsize == 2


#: Convolutions with kernels of this side or more may be products of columns on a card. For the 7x7 one of the ASPP on
#: maps of about 4096 positions cuDNN 9 takes kernels without tensor cores: 1.8 ms of a pass of 9.9 on an H200, where
#: four times as many positions take 0.06 ms. All 3x3 ones had tensor cores.
_LARGE_KERNEL = 7
#: Elements of such columns at most: as many as those of the deformable samples (worker/nets/fast/deform.py), which are
#: in memory a moment later, so the peak stays. 128 MiB in fp16.
_COLUMN_ELEMENTS = 2**26


def product_of_columns(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution with stride 1 and same padding as one copy and one matrix product.

    Args:
        x: (B, H, W, C). weight: (O, C, k, k), k odd.
    Returns:
        (B * H * W, O).
    """
    batch, height, width, channels = x.shape
    kernel = weight.shape[-1]
    ring = kernel // 2
    padded = F.pad(x, (0, 0, ring, ring, ring, ring)).contiguous()
    item, line, pixel, _ = padded.stride()
    columns = padded.as_strided(
        (batch, height, width, kernel, kernel, channels), (item, line, pixel, line, pixel, 1)
    ).reshape(batch * height * width, -1)
    return F.linear(columns, weight.permute(0, 2, 3, 1).flatten(1))


class Conv(nn.Module):
    """A square convolution with stride 1 and same padding, channels-last: (B, H, W, in) -> (B, H, W, out).

    The answer is contiguous, but for a card whose kernels take whole groups of channels: then zeros fill the last group
    of the weights, and the answer is the part of a wider map that has a meaning. On a card, bias and activation are one
    kernel; torch's convolution adds its bias in a pass of its own.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, relu: bool = False, like: Tensor) -> None:
        """
        Args:
            weight: (out, in, k, k), k odd. bias: (out,) or None.
            like: a tensor whose device and type the layer takes.
        """
        super().__init__()
        self.relu = relu
        self.out = len(weight)
        if takes_whole_groups(like) and self.out % _CHANNELS:
            weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, -self.out % _CHANNELS))
            bias = None if bias is None else F.pad(bias, (0, -self.out % _CHANNELS))
        self.register_buffer("weight", weight.detach().to(like).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if bias is None else bias.detach().to(like).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        kernels = own.kernels_for(x)
        if kernels is None or self.bias is None:
            y = self.product(x, self.bias)
            y = F.relu_(y) if self.relu else y
        else:
            y = self.product(x)
            kernels.add_bias(y.view(-1, y.shape[-1]), self.bias, relu=self.relu)
        return y[..., : self.out]

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Without bias and activation, but for the bias that is given; with the channels that fill the last group.

        A large kernel on a small map is a convolution or a product of columns, whichever is faster on this card.
        """
        if bias is None and self._may_take_columns(x):
            key = ("conv", x.device, x.dtype, tuple(x.shape), x.stride(), tuple(self.weight.shape))
            rows = own.fastest(key, [partial(self._by_convolution, x), partial(product_of_columns, x, self.weight)])
            return rows.view(*x.shape[:-1], -1)
        return as_nhwc(F.conv2d(as_nchw(x), self.weight, bias, padding=self.weight.shape[-1] // 2))

    def _may_take_columns(self, x: Tensor) -> bool:
        kernel = self.weight.shape[-1]
        if kernel < _LARGE_KERNEL or not _is_half_on_card(x) or torch.compiler.is_compiling():
            return False
        return x.numel() * kernel**2 <= _COLUMN_ELEMENTS

    def _by_convolution(self, x: Tensor) -> Tensor:
        return as_nhwc(F.conv2d(as_nchw(x), self.weight, padding=self.weight.shape[-1] // 2)).flatten(0, 2)
