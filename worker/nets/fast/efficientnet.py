"""The EfficientNet backbone for inference: batch norms folded, ReLU6 inside the convolution where the CPU has that.

Activations are channels-last throughout. The picture comes as (B, C, H, W), maps leave as (B, h, w, C_i).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.nets.decoder import image_to_pixels
from worker.nets.efficientnet import ConvNorm, EfficientNet, InvertedResidual
from worker.nets.fast.layers import Conv, as_nhwc, fold_batch_norm, packs_weights


class FastConvNorm(nn.Module):
    """ConvNorm for inference: (B, in, H, W) channels-last -> (B, out, h, w), channels-last."""

    weight: Tensor
    bias: Tensor

    def __init__(self, plain: ConvNorm) -> None:
        super().__init__()
        conv, like = plain.conv, plain.conv.weight
        self.relu = plain.relu
        self.stride, self.padding, self.groups = conv.stride, cast(tuple[int, int], conv.padding), conv.groups
        weight, bias = fold_batch_norm(plain.bn, like, None)
        self.register_buffer("weight", weight.to(like).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(like))
        self._packed = False

    def pack(self) -> None:
        """Take oneDNN's convolution with ReLU6 inside, where it can be had: it writes the widest maps only once."""
        self._packed = packs_weights(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self._packed:
            kind, values = ("hardtanh", [0.0, 6.0]) if self.relu else ("none", [])
            ops: Any = torch.ops.mkldnn
            y: Tensor = ops._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, (1, 1), self.groups, kind, values, ""
            )
            return y
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return F.hardtanh_(y, 0.0, 6.0) if self.relu else y


class _Block(nn.Module):
    """InvertedResidual for inference."""

    def __init__(self, plain: InvertedResidual) -> None:
        super().__init__()
        self.shortcut = plain.shortcut
        layers = [plain.expand, plain.depthwise, plain.project]
        self.layers = nn.Sequential(*(FastConvNorm(layer) for layer in layers if layer is not None))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.add_(x) if self.shortcut else y


class FastEfficientNet(nn.Module):
    """The backbone: (B, C, H, W) -> five maps (B, H/2.., W/2.., C_i) at strides 2, 4, 8, 16 and 32."""

    def __init__(self, plain: EfficientNet) -> None:
        super().__init__()
        self.taps = plain.config.taps
        self.stem = FastConvNorm(plain.stem)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(cast(InvertedResidual, block)) for block in cast(nn.Sequential, stage)))
            for stage in plain.stages
        )
        self.cue = None
        if plain.cue is not None:
            self.cue = Conv(plain.cue.weight, plain.cue.bias, like=plain.cue.weight)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image[:, :3].contiguous(memory_format=torch.channels_last))
        features = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == self.taps[1] and self.cue is not None:
                pixels = image_to_pixels(image[:, 3:], (x.shape[2], x.shape[3]))
                x = x + self.cue(as_nhwc(pixels)).permute(0, 3, 1, 2)
            if number in self.taps:
                features.append(as_nhwc(x))
        return features
