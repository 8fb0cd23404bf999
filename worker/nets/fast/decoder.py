"""The decoder for inference: the sums of worker/nets/decoder.py, with everything linear moved to where it is cheap.

- A lateral feature is cat(a, up(b)), a from the full and b from the half-size pass. Its 1x1 convolution is
  Wa a + up(Wb b), and the stage below is enlarged by the same up(): so Wb b is added before it, at a quarter of the
  pixels.
- Behind the last block nothing is non-linear: its last convolution, batch norm, the enlargement and the 1x1 output
  convolution are one 3x3 convolution to one channel, then the enlargement of that channel (up() keeps constants, so the
  bias commutes). The large network's 768 MB map at 1024 px is never built.
- The picture's own two convolutions of the last stage are one 5x5 convolution to one channel. Only the outermost
  pixels differ, where the second convolution sees zeros instead of what the first one says outside the picture: these
  are computed as published.
- The detail stage and the one that refines it, where a network has them, take the place of the last two points: they
  are not linear.
- Batch norms are folded; no map is joined to its patches, the convolution that follows takes them separately.
"""

import itertools
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.nets.decoder import (
    Decoder,
    DecoderBlock,
    DeformableASPP,
    DetailHead,
    LateralBlock,
    PatchBlock,
    image_to_patches,
    image_to_pixels,
)
from worker.nets.fast import own
from worker.nets.fast.deform import FastASPP
from worker.nets.fast.layers import Conv, Linear, as_nchw, as_nhwc, fold_batch_norm, pixels_of_cells, resize
from worker.nets.matting import colour_cues

#: Side of the squares of pixels in which `_Pictures` sees the picture on a card.
_CELL = 4


class _Patches(nn.Module):
    """Patches of the picture through a PatchBlock: (B, C, H, W) and a map's size -> (B, *size, out)."""

    def __init__(self, plain: PatchBlock, cut: Callable[[Tensor, tuple[int, int]], Tensor]) -> None:
        super().__init__()
        self._cut = cut
        like = plain.conv1.weight
        self.conv1 = Conv(plain.conv1.weight, plain.conv1.bias, like=like)
        self.conv_out = Conv(plain.conv_out.weight, plain.conv_out.bias, like=like)

    def forward(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        if self._cut is image_to_patches and own.kernels_for(image) is not None:
            (h, w), (height, width) = size, image.shape[2:]
            tiles = image.view(*image.shape[:2], height // h, h, width // w, w)
            return self.conv_out(self.conv1(tiles.permute(0, 3, 5, 1, 2, 4).reshape(len(image), h, w, -1)))
        return self.conv_out(self.conv1(as_nhwc(self._cut(image, size))))


class _Beside(nn.Module):
    """A convolution over maps that stand side by side, batch norm folded, ReLU: (B, H, W, C_i) -> (B, H, W, out)."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, inputs: tuple[int, ...]) -> None:
        """
        Args:
            inputs: channels of the maps.
        """
        super().__init__()
        weight, bias = fold_batch_norm(norm, conv.weight, conv.bias)
        parts = torch.split(weight, list(inputs), dim=1)
        self.parts = nn.ModuleList(Conv(part, None if i else bias, like=conv.weight) for i, part in enumerate(parts))

    def forward(self, *maps: Tensor) -> Tensor:
        convs = [cast(Conv, part) for part in self.parts]
        kernels = own.kernels_for(maps[0])
        if kernels is None:
            x: Tensor = convs[0](maps[0])
            for conv, more in zip(convs[1:], maps[1:], strict=True):
                x += conv(more)
            return x.relu_()
        x, *others = (conv.product(given) for conv, given in zip(convs, maps, strict=True))
        for other in others[1:]:
            x += other
        rows = [y.view(-1, y.shape[-1]) for y in (x, *others[:1])]
        kernels.add_bias(rows[0], convs[0].bias, *rows[1:], relu=True)
        return x[..., : convs[0].out]


class FastBlock(nn.Module):
    """DecoderBlock for inference, over one or two maps that stand side by side: (B, H, W, C_i) -> (B, H, W, out)."""

    def __init__(self, plain: DecoderBlock, inputs: tuple[int, ...], *, out: Conv | None = None) -> None:
        """
        Args:
            inputs: channels of the maps.
            out: takes the place of the last convolution and its batch norm.
        """
        super().__init__()
        self.conv_in = _Beside(plain.conv_in, plain.bn_in, inputs)
        self.aspp = FastASPP(plain.dec_att) if isinstance(plain.dec_att, DeformableASPP) else None
        if out is None:
            weight, bias = fold_batch_norm(plain.bn_out, plain.conv_out.weight, plain.conv_out.bias)
            out = Conv(weight, bias, like=plain.conv_in.weight)
        self.conv_out = out

    def forward(self, *maps: Tensor) -> Tensor:
        x = self.conv_in(*maps)
        return self.conv_out(x if self.aspp is None else self.aspp(x))


class _Join(nn.Module):
    """From one stage to the next: gate, add the half-size lateral, enlarge, add the full-size lateral."""

    def __init__(self, gate: nn.Module, attention: nn.Module, lateral: LateralBlock) -> None:
        super().__init__()
        like = lateral.conv.weight
        conv, norm, _ = cast(nn.Sequential, gate)
        assert isinstance(conv, nn.Conv2d)
        weight, bias = fold_batch_norm(norm, conv.weight, conv.bias)
        self.gate = Conv(weight, bias, relu=True, like=like)
        (to_scalar,) = cast(nn.Sequential, attention)
        assert isinstance(to_scalar, nn.Conv2d)
        self.attention = Conv(to_scalar.weight, to_scalar.bias, like=like)
        full, half = like[:, :, 0, 0].chunk(2, dim=1)
        self.from_full = Linear(full, lateral.conv.bias, like=like)
        self.from_half = Linear(half, None, like=like)

    def forward(self, p: Tensor, full: Tensor, half: Tensor) -> Tensor:
        kernels = own.kernels_for(p)
        if kernels is not None:
            # Everything that is added is added inside a product, and the bias while enlarging.
            p, channels = p.contiguous(), p.shape[-1]
            gate = self.attention(self.gate(p)).flatten(0, 2)
            rows = kernels.gated(p.view(-1, channels), gate)
            rows.addmm_(half.flatten(0, 2), cast(Tensor, self.from_half.weight).t())
            y: Tensor = kernels.resize(rows.view_as(p), tuple(full.shape[1:3]), self.from_full.bias)
            y.view(-1, channels).addmm_(full.flatten(0, 2), cast(Tensor, self.from_full.weight).t())
            return y
        p = self.from_half(half, p * self.attention(self.gate(p)).sigmoid_())
        return self.from_full(full, resize(p, (full.shape[1], full.shape[2])))


class _Pictures(nn.Module):
    """What the picture itself adds to the logits: (B, 3, H, W) -> (B, 1, H, W)."""

    def __init__(self, plain: PatchBlock, out: Tensor, bias: Tensor) -> None:
        """
        Args:
            out: (1, C) weights of the output convolution for this block's channels. bias: (1,), the output's.
        """
        super().__init__()
        like = plain.conv1.weight

        def exact(tensor: Tensor) -> Tensor:
            # Not on a card: for these few numbers it would plan a convolution in float64, and launch a kernel for each
            # assignment below.
            return tensor.cpu().double() if tensor.is_cuda else tensor.double()

        w1, b1 = exact(plain.conv1.weight), exact(cast(Tensor, plain.conv1.bias))
        w2 = torch.einsum("oc,cikl->oikl", exact(out), exact(plain.conv_out.weight))
        b2 = exact(out) @ exact(cast(Tensor, plain.conv_out.bias)) + exact(bias)
        # conv2d correlates, so the two kernels join by a full correlation of the first with the flipped second.
        kernel = F.conv2d(w1.transpose(0, 1), w2.flip(2, 3), padding=2).transpose(0, 1)
        self.first = Conv(w1, b1, like=like)
        self.second = Conv(w2, b2, like=like)
        self.register_buffer("kernel", kernel.to(like).contiguous())
        # The same over cells of 4x4 pixels: 3x3, from a cell's pixels to its logits. On a card 5x5 from three channels
        # to one leaves the tensor cores.
        cells = torch.zeros(_CELL, _CELL, like.shape[1], _CELL, _CELL, 3, 3, dtype=kernel.dtype, device=kernel.device)
        for y, x, ky, kx in itertools.product(range(_CELL), range(_CELL), range(5), range(5)):
            (dy, iy), (dx, ix) = divmod(y + ky - 2, _CELL), divmod(x + kx - 2, _CELL)
            cells[y, x, :, iy, ix, dy + 1, dx + 1] = kernel[0, :, ky, kx]
        self.cells = Conv(cells.flatten(2, 4).flatten(0, 1), None, like=like)
        self.register_buffer("bias", (b2 + w2.sum(dim=(2, 3)) @ b1).to(like))

    def forward(self, image: Tensor) -> Tensor:
        kernels = own.kernels_for(image)
        if kernels is None or image.shape[2] % _CELL or image.shape[3] % _CELL:
            y = F.conv2d(image, cast(Tensor, self.kernel), cast(Tensor, self.bias), padding=2)
        else:
            y = self._by_cells(image)
        # Three lines of the picture decide the outermost line of the answer.
        y[:, :, :1] = self._as_published(image[:, :, :3])[:, :, :1]
        y[:, :, -1:] = self._as_published(image[:, :, -3:])[:, :, -1:]
        y[:, :, :, :1] = self._as_published(image[:, :, :, :3])[:, :, :, :1]
        y[:, :, :, -1:] = self._as_published(image[:, :, :, -3:])[:, :, :, -1:]
        return y

    def _by_cells(self, image: Tensor) -> Tensor:
        y = self.cells(pixels_of_cells(image, _CELL))
        batch, h, w, _ = y.shape
        y = y.view(batch, h, w, _CELL, _CELL).transpose(2, 3).reshape(batch, 1, h * _CELL, w * _CELL)
        return y.add_(cast(Tensor, self.bias))

    def _as_published(self, image: Tensor) -> Tensor:
        return as_nchw(self.second(self.first(as_nhwc(image))))


class FastDetail(nn.Module):
    """DetailHead for inference, over maps that stand side by side: (B, h, w, C_i) -> (B, 1, 2h, 2w) logits."""

    def __init__(self, plain: DetailHead) -> None:
        super().__init__()
        like = plain.conv_in.weight
        self.conv_in = _Beside(plain.conv_in, plain.bn_in, plain.inputs)
        self.conv_mid = Conv(*fold_batch_norm(plain.bn_mid, plain.conv_mid.weight, None), relu=True, like=like)
        self.conv_out = Conv(plain.conv_out.weight, plain.conv_out.bias, like=like)

    def forward(self, *maps: Tensor) -> Tensor:
        return F.pixel_shuffle(as_nchw(self.conv_out(self.conv_mid(self.conv_in(*maps)))), 2)


class FastDecoder(nn.Module):
    """Encoder maps and the picture become logits: see `forward`."""

    def __init__(self, plain: Decoder, lateral_widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        c1, c2, c3, c4 = lateral_widths

        def published(name: str) -> nn.Module:
            return plain.get_submodule(name)

        self.patches = nn.ModuleDict(
            {str(stage): _Patches(cast(PatchBlock, published(f"ipt_blk{stage}")), plain.cut) for stage in (5, 4, 3, 2)}
        )
        self.joins = nn.ModuleDict(
            {
                str(stage): _Join(
                    published(f"gdt_convs_{stage}"),
                    published(f"gdt_convs_attn_{stage}"),
                    cast(LateralBlock, published(f"lateral_block{stage}")),
                )
                for stage in (4, 3, 2)
            }
        )
        self.blocks = nn.ModuleDict(
            {
                "4": FastBlock(plain.decoder_block4, (c4, c4 // 8)),
                "3": FastBlock(plain.decoder_block3, (c3, c4 // 8)),
                "2": FastBlock(plain.decoder_block2, (c2, c3 // 8)),
            }
        )
        last, inputs = plain.decoder_block1, (c1, c2 // 8)
        self.detail: FastDetail | None = None
        if plain.detail is not None:
            self.blocks["1"] = FastBlock(last, inputs)
            self.detail = FastDetail(plain.detail)
            self.refine = None if plain.refine is None else FastDetail(plain.refine)
            return
        output = cast(nn.Conv2d, plain.conv_out1[0])
        from_map, from_picture = output.weight[:, :, 0, 0].tensor_split((c1 // 2,), dim=1)
        weight, bias = fold_batch_norm(last.bn_out, last.conv_out.weight, last.conv_out.bias)
        weight = torch.einsum("oc,cikl->oikl", from_map.double(), weight)
        out = Conv(weight, from_map.double() @ bias, like=last.conv_out.weight)
        self.blocks["1"] = FastBlock(last, inputs, out=out)
        self.picture = _Pictures(cast(PatchBlock, published("ipt_blk1")), from_picture, cast(Tensor, output.bias))

    def forward(
        self, image: Tensor, full: list[Tensor], half: list[Tensor], deepest: Tensor, fine: Tensor | None = None
    ) -> Tensor:
        """Decode.

        Args:
            image: (B, 3, H, W), the network's input; with the ground cue, (B, 6, H, W).
            full, half: the three shallower features of both passes, shallow to deep, (B, h, w, C).
            deepest: the squeezed map, (B, h, w, C).
            fine: the backbone's map at stride 2, (B, h, w, C); needed by the detail and the refining stage only.
        Returns:
            (B, 1, H, W) logits.
        """
        p = self._block(4, image, deepest, 5)
        for stage, a, b in zip((4, 3, 2), reversed(full), reversed(half), strict=True):
            p = self._block(stage - 1, image, self.joins[str(stage)](p, a, b), stage)
        if self.detail is not None:
            assert fine is not None
            size = (fine.shape[1], fine.shape[2])
            p = resize(p, size)
            logits: Tensor = self.detail(p, fine, as_nhwc(image_to_pixels(image, size)))
            if self.refine is None:
                return logits
            cues = image_to_pixels(colour_cues(image[:, :3], logits).to(p), size)
            return logits + cast(Tensor, self.refine(p, fine, as_nhwc(cues)))
        height, width = image.shape[2:]
        return self.picture(image) + as_nchw(resize(p, (height, width)))

    def _block(self, number: int, image: Tensor, x: Tensor, patch_stage: int) -> Tensor:
        return self.blocks[str(number)](x, self.patches[str(patch_stage)](image, (x.shape[1], x.shape[2])))
