"""BiRefNet: bilateral reference for high-resolution dichotomous image segmentation.

Source: Zheng et al. 2024 (arXiv 2401.03407), section 3; released configuration of the official code (MIT). The
RMBG-2.0 checkpoint (CC BY-NC 4.0) has the same architecture with other weights. This is our own code, written from
the paper and the published checkpoints' key layout; weights come from `model.safetensors` of the hub repositories.

The picture passes the backbone twice, at full and at half size; both passes' features stand side by side as lateral
features, the deepest joined by all shallower ones and squeezed, then decoded to one map of logits.
"""

import torch
from torch import Tensor, nn

from worker.nets.config import BiRefNetConfig
from worker.nets.decoder import AuxOutputs, Decoder, DecoderBlock, resize
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
        self.bb = Swin(config.backbone)
        self.squeeze_module = nn.Sequential(DecoderBlock(c1 + c2 + c3 + c4, c4, config))
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, self._encode(x))

    def forward_with_aux(self, x: Tensor) -> AuxOutputs:
        """The forward pass with everything that training supervises; the last mask is what `forward` returns."""
        aux = AuxOutputs()
        logits = self.decoder(x, self._encode(x), aux)
        aux.masks.append(logits)
        return aux

    def _encode(self, x: Tensor) -> list[Tensor]:
        height, width = self.config.check_size(x.shape)
        full = self.bb(x)
        half = self.bb(resize(x, (height // 2, width // 2)))
        x1, x2, x3, x4 = (torch.cat((a, resize(b, a.shape[2:])), dim=1) for a, b in zip(full, half, strict=True))
        size = x4.shape[2:]
        x4 = torch.cat((resize(x1, size), resize(x2, size), resize(x3, size), x4), dim=1)
        return [x1, x2, x3, self.squeeze_module(x4)]
