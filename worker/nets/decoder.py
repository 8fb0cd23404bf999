"""BiRefNet's decoder: blocks with a deformable ASPP, fed by laterals and by patches of the picture itself.

Source: Zheng et al. 2024 (arXiv 2401.03407), section 3.2 (reconstruction blocks, inward reference: original-size
patches of the picture enter every stage; outward reference: an attention learned from gradients). Module names
follow the published checkpoints' key layout.

Differences from the official code: the resize right after cutting patches is dropped (it never changes the size);
multi-scale masks and gradient maps, used in training only, are computed only by `forward_with_aux`.
"""

from dataclasses import dataclass, field
from functools import reduce
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.nets.config import BiRefNetConfig, EfficientNetConfig
from worker.nets.deform_conv import DeformableConv2d
from worker.nets.matting import CUES, colour_cues


def resize(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear resize with corners aligned, the only kind inside this network. (B, C, H, W) -> (B, C, *size)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def image_to_patches(image: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Stack tiles of the picture as channels, so that one position sees the same offset in every tile.

    Args:
        image: (B, C, H, W); H and W are multiples of `size`.
        size: (h, w) of one tile.
    Returns:
        (B, C * H/h * W/w, h, w); channels in the order (c, tile row, tile column). Not a pixel-unshuffle.
    Raises:
        ValueError: the picture does not divide into tiles of this size.
    """
    b, c, height, width = image.shape
    h, w = size
    if height % h or width % w:
        raise ValueError(f"a {height}x{width} picture does not divide into tiles of {h}x{w}; use multiples of 32")
    x = image.view(b, c, height // h, h, width // w, w)
    return x.permute(0, 1, 2, 4, 3, 5).reshape(b, -1, h, w)


def image_to_pixels(image: Tensor, size: torch.Size | tuple[int, int], limit: int = 4) -> Tensor:
    """Stack the pixels of each position as channels, so that it sees what it stands for: a pixel-unshuffle.

    Args:
        image: (B, C, H, W); H and W are multiples of `size`, by one factor.
        size: (h, w) of the result.
        limit: pixels of one position per side; of more, averages are taken.
    Returns:
        (B, C * k**2, h, w), k = min(H / h, limit); channels in the order (c, row, column).
    Raises:
        ValueError: the picture does not divide into squares of one size.
    """
    batch, channels, height, width = image.shape
    side = height // size[0]
    if (size[0] * side, size[1] * side) != (height, width):
        raise ValueError(f"a {height}x{width} picture does not divide into {size[0]}x{size[1]} squares")
    if side > limit:
        image, side = F.avg_pool2d(image, side // limit), limit
    if image.is_cuda or torch.compiler.is_compiling():
        return F.pixel_unshuffle(image, side)
    # The same, each square's pixels one after the other in memory, as the convolution behind it reads them.
    squares = image.new_empty(batch, *size, channels, side, side)
    for row, column in product(range(side), repeat=2):
        squares[..., row, column] = image[:, :, row::side, column::side].permute(0, 2, 3, 1)
    return squares.flatten(3).permute(0, 3, 1, 2)


class DeformableBranch(nn.Module):
    """One branch of the ASPP: deformable convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.atrous_conv = DeformableConv2d(in_channels, out_channels, kernel_size)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class DeformableASPP(nn.Module):
    """Atrous spatial pyramid with deformable branches and a global average: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, width: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.aspp1 = DeformableBranch(channels, width, 1)
        self.aspp_deforms = nn.ModuleList(DeformableBranch(channels, width, kernel) for kernel in kernels)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.conv1 = nn.Conv2d(width * (len(kernels) + 2), channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        branches = [self.aspp1(x), *(branch(x) for branch in self.aspp_deforms), pooled]
        return self.dropout(F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1)))))


class DecoderBlock(nn.Module):
    """Convolution in, deformable ASPP where the config has one, convolution out: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, config: BiRefNetConfig, *, number: int) -> None:
        super().__init__()
        width = config.block_width
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.dec_att: nn.Module | None = None
        if number in config.aspp_blocks:
            self.dec_att = DeformableASPP(width, config.aspp_width, config.aspp_kernels)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)
        self.bn_in = nn.BatchNorm2d(width)
        self.bn_out = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_in(self.conv_in(x)))
        return self.bn_out(self.conv_out(x if self.dec_att is None else self.dec_att(x)))


class LateralBlock(nn.Module):
    """A 1x1 convolution from the encoder's feature to the decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PatchBlock(nn.Module):
    """Two convolutions with nothing between them, from picture patches to features."""

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv1(x))


class DetailHead(nn.Module):
    """The last stage at half the picture's size: the decoder's map, the finest feature and the pixels become logits.

    Four logits per position are the four pixels it stands for, so that an edge can fall between any two pixels.
    """

    def __init__(self, inputs: tuple[int, ...], width: int) -> None:
        """
        Args:
            inputs: channels of the maps.
        """
        super().__init__()
        self.inputs = inputs
        self.conv_in = nn.Conv2d(sum(inputs), width, 3, padding=1, bias=False)
        self.bn_in = nn.BatchNorm2d(width)
        self.conv_mid = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn_mid = nn.BatchNorm2d(width)
        self.conv_out = nn.Conv2d(width, 4, 1)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps (B, C_i, h, w) side by side -> (B, 1, 2h, 2w) logits."""
        # Each map meets its part of the kernel: none is copied, and those that have no gradient ask for none.
        kernels = torch.split(self.conv_in.weight, list(self.inputs), dim=1)
        parts = (F.conv2d(x, kernel, padding=1) for x, kernel in zip(maps, kernels, strict=True))
        x = F.relu(self.bn_in(reduce(torch.add, parts)))
        x = F.relu(self.bn_mid(self.conv_mid(x)))
        return F.pixel_shuffle(self.conv_out(x), 2)


@dataclass
class AuxOutputs:
    """What training supervises.

    Attributes:
        masks: logits, coarse to fine; the last is the answer, (B, 1, H, W).
        gradients: logits (B, 1, h, w) of the picture's gradient inside the mask, coarse to fine.
    """

    masks: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


class Decoder(nn.Module):
    """Four encoder maps and the picture become one map of logits at the picture's size."""

    def __init__(self, config: BiRefNetConfig) -> None:
        super().__init__()
        c1, c2, c3, c4 = config.lateral_widths  # shallow to deep
        patch = config.backbone.patch_size
        width = config.patch_width
        self.cut = image_to_patches if config.patches == "tiles" else image_to_pixels
        # Tiles per side at each stage: the picture's side over the feature's side.
        tiles = {5: 8 * patch, 4: 4 * patch, 3: 2 * patch, 2: patch, 1: 1}
        stages = {5: c4 // 8, 4: c4 // 8, 3: c3 // 8, 2: c2 // 8, 1: c1 // 8}
        if config.detail_width:
            del stages[1]
        for stage, out in stages.items():
            side = tiles[stage] if config.patches == "tiles" else min(tiles[stage], 4)
            self.add_module(f"ipt_blk{stage}", PatchBlock(config.picture_channels * side**2, width, out))

        self.decoder_block4 = DecoderBlock(c4 + c4 // 8, c3, config, number=4)
        self.decoder_block3 = DecoderBlock(c3 + c4 // 8, c2, config, number=3)
        self.decoder_block2 = DecoderBlock(c2 + c3 // 8, c1, config, number=2)
        self.decoder_block1 = DecoderBlock(c1 + c2 // 8, c1 // 2, config, number=1)
        self.detail: DetailHead | None = None
        self.refine: DetailHead | None = None
        if config.detail_width:
            assert isinstance(config.backbone, EfficientNetConfig)
            inputs = (c1 // 2, config.backbone.fine_width, 4 * config.picture_channels)
            self.detail = DetailHead(inputs, config.detail_width)
            if config.refine_width:
                self.refine = DetailHead((*inputs[:2], 4 * CUES), config.refine_width)
        else:
            self.conv_out1 = nn.Sequential(nn.Conv2d(c1 // 2 + c1 // 8, 1, 1))

        for stage, channels in ((4, c3), (3, c2), (2, c1)):
            self.add_module(f"lateral_block{stage}", LateralBlock(channels))
            self.add_module(f"conv_ms_spvn_{stage}", nn.Conv2d(channels, 1, 1))
            self.add_module(
                f"gdt_convs_{stage}",
                nn.Sequential(
                    nn.Conv2d(channels, config.gradient_width, 3, padding=1),
                    nn.BatchNorm2d(config.gradient_width),
                    nn.ReLU(),
                ),
            )
            self.add_module(f"gdt_convs_pred_{stage}", nn.Sequential(nn.Conv2d(config.gradient_width, 1, 1)))
            self.add_module(f"gdt_convs_attn_{stage}", nn.Sequential(nn.Conv2d(config.gradient_width, 1, 1)))

    def forward(
        self, image: Tensor, features: list[Tensor], fine: Tensor | None = None, aux: AuxOutputs | None = None
    ) -> Tensor:
        """Decode.

        Args:
            image: (B, 3, H, W), the network's input; with the ground cue, (B, 6, H, W).
            features: lateral maps, shallow to deep, the deepest already squeezed.
            fine: the backbone's map at stride 2; needed by the detail and the refining stage only.
            aux: filled with the coarser masks and gradient maps when given.
        Returns:
            (B, 1, H, W) logits.
        """
        x1, x2, x3, x4 = features
        p = self.decoder_block4(self._with_patches(5, image, x4))
        for stage, lateral, block in ((4, x3, self.decoder_block3), (3, x2, self.decoder_block2)):
            p = block(self._with_patches(stage, image, self._join(stage, p, lateral, aux)))
        p = self.decoder_block1(self._with_patches(2, image, self._join(2, p, x1, aux)))
        if self.detail is not None:
            assert fine is not None
            size = fine.shape[2:]
            p = resize(p, size)
            logits: Tensor = self.detail(p, fine, image_to_pixels(image, size))
            if self.refine is None:
                return logits
            if aux is not None:
                aux.masks.append(logits)
            return logits + self.refine(p, fine, image_to_pixels(colour_cues(image[:, :3], logits).to(p), size))
        p = torch.cat((resize(p, image.shape[2:]), self.get_submodule("ipt_blk1")(image)), dim=1)
        return self.conv_out1(p)

    def _with_patches(self, stage: int, image: Tensor, x: Tensor) -> Tensor:
        patches = self.cut(image, x.shape[2:])
        return torch.cat((x, self.get_submodule(f"ipt_blk{stage}")(patches)), dim=1)

    def _join(self, stage: int, p: Tensor, lateral: Tensor, aux: AuxOutputs | None) -> Tensor:
        """Gate a stage's output by its gradient attention, enlarge it, and add the lateral feature."""
        gradient = self.get_submodule(f"gdt_convs_{stage}")(p)
        if aux is not None:
            aux.masks.append(self.get_submodule(f"conv_ms_spvn_{stage}")(p))
            aux.gradients.append(self.get_submodule(f"gdt_convs_pred_{stage}")(gradient))
        p = p * self.get_submodule(f"gdt_convs_attn_{stage}")(gradient).sigmoid()
        return resize(p, lateral.shape[2:]) + self.get_submodule(f"lateral_block{stage}")(lateral)
