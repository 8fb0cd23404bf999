"""BiRefNet: bilateral reference for high-resolution dichotomous image segmentation.

Source: Zheng et al. 2024 (arXiv 2401.03407), section 3; released configuration of the official code (MIT). The
RMBG-2.0 checkpoint (CC BY-NC 4.0) has the same architecture with other weights. This is our own code, written from
the paper and the published checkpoints' key layout; weights come from `model.safetensors` of the hub repositories.

The picture passes the backbone twice, at full and at half size; both passes' features stand side by side as lateral
features, the deepest joined by all shallower ones and squeezed, then decoded to one map of logits.
"""

import torch
from torch import Tensor, nn

from worker.nets.config import BiRefNetConfig, EfficientNetConfig
from worker.nets.decoder import AuxOutputs, Decoder, DecoderBlock, resize
from worker.nets.efficientnet import EfficientNet
from worker.nets.ground import with_ground_cue
from worker.nets.swin import Swin


class BiRefNet(nn.Module):
    """The whole network.

    Shapes: (B, 3, H, W) ImageNet-normalised RGB -> (B, 1, H, W) logits, before the one sigmoid that is due.
    H and W are multiples of 8 * patch size (32 for every published variant).
    """

    def __init__(self, config: BiRefNetConfig) -> None:
        super().__init__()
        self.config = config
        c1, c2, c3, c4 = config.lateral_widths
        self.bb = _backbone(config)
        self.squeeze_module = nn.Sequential(DecoderBlock(c1 + c2 + c3 + c4, c4, config, number=5))
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> Tensor:
        x = self._with_cue(x)
        return self.decoder(x, *self._encode(x))

    def forward_with_aux(self, x: Tensor) -> AuxOutputs:
        """The forward pass with everything that training supervises; the last mask is what `forward` returns."""
        aux = AuxOutputs()
        x = self._with_cue(x)
        logits = self.decoder(x, *self._encode(x), aux)
        aux.masks.append(logits)
        return aux

    def _with_cue(self, x: Tensor) -> Tensor:
        return with_ground_cue(x) if self.config.ground_cue else x

    def _encode(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Lateral maps, shallow to deep, the deepest squeezed; and the map at stride 2, where the backbone has one."""
        height, width = self.config.check_size(x.shape)
        *fine, a1, a2, a3, a4 = self.bb(x)
        half = self.bb(resize(x, (height // 2, width // 2)))[-4:]
        x1, x2, x3, x4 = (
            torch.cat((a, resize(b, a.shape[2:])), dim=1) for a, b in zip((a1, a2, a3, a4), half, strict=True)
        )
        size = x4.shape[2:]
        x4 = torch.cat((resize(x1, size), resize(x2, size), resize(x3, size), x4), dim=1)
        return [x1, x2, x3, self.squeeze_module(x4)], fine[0] if fine else None


def _backbone(config: BiRefNetConfig) -> nn.Module:
    if isinstance(config.backbone, EfficientNetConfig):
        return EfficientNet(config.backbone, config.picture_channels)
    return Swin(config.backbone)
