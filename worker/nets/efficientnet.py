"""EfficientNet-Lite as a backbone: inverted residuals with depthwise convolutions, five maps on the way.

Source: Tan and Le 2019, EfficientNet (arXiv 1905.11946), table 1, in its Lite variant (TensorFlow TPU repository,
2020): no squeeze-and-excitation, ReLU6 in place of swish. Written from the paper; the shapes are those of the published
checkpoints, whose values training/pretrained.py can start from (Apache-2.0).

Differences from the original: the stages behind `config.stages` and the classifier are not there; padding is the same
on both sides (the original's stride-2 convolutions pad right and below); more channels than three may join at stride 4.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from worker.nets.config import EfficientNetConfig, Stage
from worker.nets.decoder import image_to_pixels

#: The value of the published checkpoints.
BATCH_NORM_EPS = 1e-3


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and ReLU6 where asked: (B, in, H, W) -> (B, out, ceil(H/stride), ...)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.relu = relu
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu6(x) if self.relu else x


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; beside a shortcut where input and output have one shape.

    Source: Sandler et al. 2018, MobileNetV2 (arXiv 1801.04381), table 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.expand = ConvNorm(in_channels, hidden, 1) if expansion > 1 else None
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = ConvNorm(hidden, out_channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.shortcut else y


def _stage(in_channels: int, stage: Stage) -> nn.Sequential:
    blocks = []
    for number in range(stage.repeats):
        stride = stage.stride if number == 0 else 1
        blocks.append(InvertedResidual(in_channels, stage.channels, stage.kernel, stride, stage.expansion))
        in_channels = stage.channels
    return nn.Sequential(*blocks)


class EfficientNet(nn.Module):
    """The backbone: (B, C, H, W) -> five maps (B, C_i, H/2.., W/2..), at strides 2, 4, 8, 16 and 32.

    A map is what the last stage of its stride gives. The stem sees the three channels of the picture; what stands
    behind them joins at stride 4, so that everything before is the published network's and can stay so in training.
    """

    def __init__(self, config: EfficientNetConfig, in_channels: int = 3) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvNorm(3, config.stem_width, 3, stride=2)
        self.cue = nn.Conv2d(16 * (in_channels - 3), config.widths[0], 1) if in_channels > 3 else None
        widths = (config.stem_width, *(stage.channels for stage in config.stages))
        self.stages = nn.ModuleList(_stage(width, stage) for width, stage in zip(widths, config.stages, strict=False))

    @property
    def early(self) -> list[nn.Module]:
        """The stem and the stages down to stride 4."""
        return [self.stem, *list(self.stages)[: self.config.taps[1] + 1]]

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image[:, :3])
        features = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == self.config.taps[1] and self.cue is not None:
                x = x + self.cue(image_to_pixels(image[:, 3:], x.shape[2:]))
            if number in self.config.taps:
                features.append(x)
        return features
