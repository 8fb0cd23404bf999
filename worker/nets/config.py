"""The numbers of every network variant, in one place.

Sources: Liu et al. 2021, Swin Transformer (arXiv 2103.14030), table 7, for the tiny and large backbones;
Zheng et al. 2024, BiRefNet (arXiv 2401.03407), section 3 and its released configuration, for the decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SwinConfig:
    """A Swin backbone: four stages, each at half the resolution and twice the width of the one before.

    Attributes:
        embed_dim: channels of stage 1; stage i has embed_dim * 2**(i-1).
        depths: blocks per stage.
        num_heads: attention heads per stage; each divides the stage's channels.
        window_size: side of an attention window, in tokens.
        patch_size: side of the square of pixels that becomes one token.
        mlp_ratio: hidden width of a block's MLP over its channels.
    """

    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window_size: int
    patch_size: int = 4
    mlp_ratio: float = 4.0

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the four stages, shallow to deep."""
        d = self.embed_dim
        return (d, 2 * d, 4 * d, 8 * d)


@dataclass(frozen=True)
class BiRefNetConfig:
    """A whole network.

    Attributes:
        backbone: the Swin variant.
        input_size: side of the square input the weights were trained for, in pixels.
        block_width: inner channels of every decoder block.
        aspp_width: channels of each branch of the deformable ASPP.
        aspp_kernels: kernel sizes of its deformable branches.
        patch_width: inner channels of the image-patch injection.
        gradient_width: channels of the gradient attention.
    """

    backbone: SwinConfig
    input_size: int = 1024
    block_width: int = 64
    aspp_width: int = 256
    aspp_kernels: tuple[int, ...] = (1, 3, 7)
    patch_width: int = 64
    gradient_width: int = 16

    @property
    def lateral_widths(self) -> tuple[int, int, int, int]:
        """Channels of the lateral features, shallow to deep: full- and half-size pass side by side."""
        a, b, c, d = self.backbone.widths
        return (2 * a, 2 * b, 2 * c, 2 * d)

    def check_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of an input of this shape, (B, 3, H, W).

        Raises:
            ValueError: they are not multiples of 8 * patch size.
        """
        height, width = shape[2:]
        multiple = 8 * self.backbone.patch_size
        if height % multiple or width % multiple:
            raise ValueError(f"the input is {height}x{width}; both sides must be multiples of {multiple}")
        return height, width


#: Variant name -> configuration. `swin_v1_large` is BiRefNet and RMBG-2.0, `swin_v1_tiny` is BiRefNet_lite.
CONFIGS: dict[str, BiRefNetConfig] = {
    "swin_v1_large": BiRefNetConfig(SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), window_size=12)),
    "swin_v1_tiny": BiRefNetConfig(SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), window_size=7)),
    "starter": BiRefNetConfig(
        SwinConfig(24, (2, 2, 4, 2), (1, 2, 4, 8), window_size=8),
        input_size=512,
        block_width=24,
        aspp_width=32,
        aspp_kernels=(1, 3),
        patch_width=8,
        gradient_width=8,
    ),
    # Every shape rule at a size where a forward pass takes milliseconds.
    "toy": BiRefNetConfig(
        SwinConfig(16, (1, 1, 2, 1), (1, 2, 2, 4), window_size=4),
        input_size=64,
        block_width=8,
        aspp_width=8,
        patch_width=4,
        gradient_width=4,
    ),
}
