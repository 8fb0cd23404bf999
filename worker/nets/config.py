"""The numbers of every network variant, in one place.

Sources: Liu et al. 2021, Swin Transformer (arXiv 2103.14030), table 7, for the tiny and large backbones; Tan and Le
2019, EfficientNet (arXiv 1905.11946), table 1, in its Lite variant, for the starter's; Zheng et al. 2024, BiRefNet
(arXiv 2401.03407), section 3 and its released configuration, for the decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


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
class Stage:
    """Inverted residuals of one width; the first has the stride.

    Attributes:
        expansion: hidden width of a block over its input's.
    """

    channels: int
    repeats: int
    kernel: int
    stride: int
    expansion: int = 6


@dataclass(frozen=True)
class EfficientNetConfig:
    """An EfficientNet-Lite backbone: a stride-2 stem, then stages that come down to stride 32.

    Attributes:
        stem_width: channels of the stem.
    """

    stem_width: int
    stages: tuple[Stage, ...]
    patch_size: ClassVar[int] = 4

    @property
    def taps(self) -> tuple[int, ...]:
        """Numbers of the stages whose maps leave the backbone: the last at each of the strides 2, 4, 8, 16 and 32."""
        last = len(self.stages) - 1
        return tuple(i for i in range(last + 1) if i == last or self.stages[i + 1].stride == 2)

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the maps at strides 4, 8, 16 and 32."""
        a, b, c, d = (self.stages[tap].channels for tap in self.taps[1:])
        return (a, b, c, d)

    @property
    def fine_width(self) -> int:
        """Channels of the map at stride 2."""
        return self.stages[self.taps[0]].channels


@dataclass(frozen=True)
class BiRefNetConfig:
    """A whole network.

    Attributes:
        backbone: the Swin or EfficientNet variant.
        input_size: side of the square input the weights were trained for, in pixels.
        block_width: inner channels of every decoder block.
        aspp_width: channels of each branch of the deformable ASPP.
        aspp_kernels: kernel sizes of its deformable branches.
        patch_width: inner channels of the image-patch injection.
        gradient_width: channels of the gradient attention.
        aspp_blocks: which decoder blocks have the ASPP, 5 (the squeeze) to 1; the others are two convolutions.
        patches: how the picture enters a decoder stage. "tiles": all of it, cut into tiles that lie on top of each
            other, as published. "pixels": each position sees what it stands for, at most 4x4 values (averages of more).
        detail_width: channels of the last stage, which works at half the picture's size; 0 is the published output at a
            quarter. Needs a backbone with a map at stride 2.
        refine_width: channels of a stage after that, which sees its mask and what the colours say of it (matting.py),
            and adds to its logits; 0 is none.
        ground_cue: the network also sees how far each pixel is from the ground, as the picture's border tells it.
    """

    backbone: SwinConfig | EfficientNetConfig
    input_size: int = 1024
    block_width: int = 64
    aspp_width: int = 256
    aspp_kernels: tuple[int, ...] = (1, 3, 7)
    patch_width: int = 64
    gradient_width: int = 16
    aspp_blocks: tuple[int, ...] = (5, 4, 3, 2, 1)
    patches: Literal["tiles", "pixels"] = "tiles"
    detail_width: int = 0
    refine_width: int = 0
    ground_cue: bool = False

    @property
    def picture_channels(self) -> int:
        """Channels in which backbone and decoder see the picture."""
        return 6 if self.ground_cue else 3

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


#: EfficientNet-Lite0 without its last stages: of four blocks of 192 channels two, and none of 320.
_LITE0 = EfficientNetConfig(
    32,
    (
        Stage(16, 1, 3, 1, expansion=1),
        Stage(24, 2, 3, 2),
        Stage(40, 2, 5, 2),
        Stage(80, 3, 3, 2),
        Stage(112, 3, 5, 1),
        Stage(192, 2, 5, 2),
    ),
)

#: Variant name -> configuration. `swin_v1_large` is BiRefNet and RMBG-2.0, `swin_v1_tiny` is BiRefNet_lite.
CONFIGS: dict[str, BiRefNetConfig] = {
    "swin_v1_large": BiRefNetConfig(SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), window_size=12)),
    "swin_v1_tiny": BiRefNetConfig(SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), window_size=7)),
    "starter": BiRefNetConfig(
        _LITE0,
        input_size=640,
        block_width=56,
        aspp_width=48,
        aspp_kernels=(1, 3),
        patch_width=8,
        gradient_width=8,
        aspp_blocks=(5, 4, 3),
        patches="pixels",
        detail_width=32,
        refine_width=24,
        ground_cue=True,
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
