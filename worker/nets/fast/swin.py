"""The backbone for inference: the same sums as worker/nets/swin.py on rows of tokens.

- Padding, the cyclic shift and the cut into windows are one gather of rows by a list of numbers made once per size, and
  the way back is another. Where many tokens are padded, the projections run on real ones only; a padded token's q, k
  and v are the bias.
- Windows stand in four groups: those the shift leaves whole, those it cuts from right to left, from top to bottom, and
  both. All windows of a group have the same mask, so the bias and the mask of a block are four small tensors made at
  load, and no tensor of every window's bias is ever built (241 MB in the first stage of the large network at 1024 px).
- On CUDA both gathers and the attention between them are one kernel of our own, where it can run: in torch's operators
  the gathers move 2.1 GB for one picture of 1024 px (worker/nets/fast/own.py). Norms are kernels too, so that shortcuts
  can be sums inside the matrix products.
"""

from copy import deepcopy
from functools import partial
from types import ModuleType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.nets.fast import own
from worker.nets.fast.layers import Linear, pixels_of_cells
from worker.nets.swin import PatchMerging, Swin, SwinBlock, SwinStage, shift_mask, split_windows

#: Share of padded tokens up to which they are projected too: the gather then moves rows of dim, not of 3 * dim. At
#: 1024 px the first two stages have 2-7 % and the others 16-56 %. The tiny backbone, one thread: 2.21 s; 2.28 s when no
#: padded token is projected, 2.31 s when all are.
_FEW_PADDED = 0.1


class _Plan(nn.Module):
    """How the tokens of a batch of maps stand in windows. A module, so that a compiler finds its tensors by name.

    Attributes:
        source: (windows * N,) row of each window's token; 0 for padded tokens.
        padded: positions in `source` of padded tokens.
        back: (B*H*W,) where each token stands in `source`.
        groups: number of windows of each kind: whole, cut right, cut below, cut both ways.
        tokens: (windows, N) int32, as `source`, but -1 for padded tokens; and kinds: (windows,) int32, which group.
            For our own kernel.
    """

    source: Tensor
    padded: Tensor
    back: Tensor
    tokens: Tensor
    kinds: Tensor

    def __init__(self, batch: int, height: int, width: int, window: int, shift: int, device: torch.device) -> None:
        super().__init__()
        numbers = torch.arange(batch * height * width, device="cpu").view(batch, height, width, 1)
        numbers = F.pad(numbers, (0, 0, 0, -width % window, 0, -height % window), value=-1)
        if shift:
            numbers = numbers.roll((-shift, -shift), dims=(1, 2))
        rows, columns = numbers.shape[1] // window, numbers.shape[2] // window
        windows = split_windows(numbers, window).view(batch, rows, columns, -1)
        if shift:
            kinds = (
                windows[:, :-1, :-1],
                windows[:, :-1, -1:],
                windows[:, -1:, :-1],
                windows[:, -1:, -1:],
            )
        else:
            kinds = (windows, *(windows[:0],) * 3)
        source = torch.cat([kind.flatten() for kind in kinds])
        back = torch.empty(batch * height * width, dtype=torch.int64, device="cpu")
        real = (source >= 0).nonzero().flatten()
        back[source[real]] = real
        self.groups = [kind.shape[:3].numel() for kind in kinds]
        self.register_buffer("source", source.clamp(min=0).to(device), persistent=False)
        self.register_buffer("padded", (source < 0).nonzero().flatten().to(device), persistent=False)
        self.register_buffer("back", back.to(device), persistent=False)
        which = torch.arange(4, device="cpu").repeat_interleave(torch.tensor(self.groups, device="cpu"))
        self.register_buffer("tokens", source.view(-1, window**2).int().to(device), persistent=False)
        self.register_buffer("kinds", which.int().to(device), persistent=False)


class _Block(nn.Module):
    """SwinBlock for inference: (B*H*W, dim) rows -> the same.

    Attributes:
        shifts: two (dim,) float32, for our own kernels: what the biases before each norm in this stage add up to.
        shift_out: the same with this block's biases.
    """

    shifts: Tensor
    shift_out: Tensor

    def __init__(self, plain: SwinBlock, shift_in: Tensor | None = None) -> None:
        """
        Args:
            shift_in: `shift_out` of the block before, None for a stage's first.
        """
        super().__init__()
        attention = plain.attn
        like = attention.qkv.weight
        self.window, self.shift = plain.window_size, plain.shift
        self.num_heads = attention.num_heads
        self.norm1, self.norm2 = deepcopy(plain.norm1), deepcopy(plain.norm2)
        self.qkv = Linear(attention.qkv.weight, attention.qkv.bias, like=like)
        self.proj = Linear(attention.proj.weight, attention.proj.bias, like=like)
        self.fc1 = Linear(plain.mlp.fc1.weight, plain.mlp.fc1.bias, "gelu", like=like)
        self.fc2 = Linear(plain.mlp.fc2.weight, plain.mlp.fc2.bias, like=like)
        bias = attention.relative_position_bias_table[attention.relative_position_index]
        masks = bias.permute(2, 0, 1).unsqueeze(0)  # (1, heads, N, N)
        if self.shift:
            # Two by two windows have one of each kind, in the order of the plan's groups.
            allowed = shift_mask(2 * self.window, 2 * self.window, self.window, self.shift, like.device)
            masks = masks.masked_fill(~allowed.unsqueeze(1), float("-inf"))
        self.register_buffer("masks", masks.to(like).contiguous())
        first = torch.zeros(len(plain.norm1.weight), device=like.device) if shift_in is None else shift_in
        second = first + attention.proj.bias.detach().float()
        self.register_buffer("shifts", torch.stack((first, second)))
        self.register_buffer("shift_out", second + plain.mlp.fc2.bias.detach().float())

    def add_to(self, x: Tensor, plan: _Plan, kernels: ModuleType) -> None:
        """By our own kernels, in place: `x` is the rows less their shift, before and after.

        So the two shortcuts are sums inside the matrix products, which have no bias then: biases are constants, and
        nothing but the norms needs them.
        """
        y = _norm(kernels, self.norm1, x, self.shifts[0])
        y = self._attend_by_own_kernel(self.qkv(y), plan, kernels)
        x.addmm_(y, cast(Tensor, self.proj.weight).t())
        y = self.fc1(_norm(kernels, self.norm2, x, self.shifts[1]))
        x.addmm_(y, cast(Tensor, self.fc2.weight).t())

    def _attend_by_own_kernel(self, qkv: Tensor, plan: _Plan, kernels: ModuleType) -> Tensor:
        """(rows, 3 * dim) -> (rows, dim), in the way that is fastest for so many rows on this card."""
        attend = partial(
            kernels.window_attention,
            qkv,
            cast(Tensor, self.qkv.bias),
            self.masks,
            plan.tokens,
            plan.kinds,
            self.num_heads,
        )
        if not qkv.is_cuda:
            return cast(Tensor, attend())
        key = ("attention", qkv.device, qkv.dtype, tuple(qkv.shape), self.num_heads, self.window)
        return own.fastest(key, [partial(attend, form) for form in range(kernels.ATTENTION_FORMS)])

    def forward(self, x: Tensor, plan: _Plan) -> Tensor:
        x = self.proj(self._attend(self.norm1(x), plan), x)
        return self.fc2(self.fc1(self.norm2(x)), x)

    def _attend(self, x: Tensor, plan: _Plan) -> Tensor:
        dim, tokens = x.shape[-1], self.window**2
        padded = len(plan.padded)
        if padded > _FEW_PADDED * len(plan.source):
            windows = self.qkv(x).index_select(0, plan.source)  # (windows * N, 3 * dim)
            windows.index_copy_(0, plan.padded, cast(Tensor, self.qkv.bias).expand(padded, -1))
        else:
            windows = x.index_select(0, plan.source)
            if padded:
                windows.index_fill_(0, plan.padded, 0)
            windows = self.qkv(windows)
        q, k, v = windows.view(-1, tokens, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        parts, start = [], 0
        masks = cast(Tensor, self.masks)
        for mask, count in zip(masks, plan.groups, strict=False):
            if count:
                at = slice(start, start + count)
                y = F.scaled_dot_product_attention(q[at], k[at], v[at], attn_mask=mask.unsqueeze(0))
                parts.append(y.transpose(1, 2).reshape(-1, dim))  # (count * N, dim)
                start += count
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return y.index_select(0, plan.back)


def _norm(kernels: ModuleType, norm: nn.LayerNorm, x: Tensor, shift: Tensor) -> Tensor:
    """The norm of x + shift, (..., dim) -> the same."""
    y = kernels.layer_norm(x.reshape(-1, x.shape[-1]), shift, norm.weight, norm.bias, norm.eps)
    return cast(Tensor, y).view(x.shape)


class _Merging(nn.Module):
    """PatchMerging for inference."""

    def __init__(self, plain: PatchMerging) -> None:
        super().__init__()
        self.norm = deepcopy(plain.norm)
        self.reduction = Linear(plain.reduction.weight, None, like=plain.reduction.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = _even(x)
        cells = torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), dim=-1)
        return self.reduction(self.norm(cells))

    def by_own_kernels(self, x: Tensor, shift: Tensor, kernels: ModuleType) -> Tensor:
        """The same of x + shift."""
        if x.shape[1] % 2 or x.shape[2] % 2:  # what is padded is zero after the shift
            x, shift = _even(x + shift.to(x.dtype)), torch.zeros_like(shift)
        norm = self.norm
        return self.reduction(kernels.layer_norm_of_cells(x, shift.repeat(4), norm.weight, norm.bias, norm.eps))


def _even(x: Tensor) -> Tensor:
    """(B, h, w, C) with rows and columns of zeros below and to the right where their number is odd."""
    _, h, w, _ = x.shape
    return F.pad(x, (0, 0, 0, w % 2, 0, h % 2)) if h % 2 or w % 2 else x


class _Stage(nn.Module):
    def __init__(self, plain: SwinStage) -> None:
        super().__init__()
        blocks: list[_Block] = []
        for block in plain.blocks:
            blocks.append(_Block(cast(SwinBlock, block), blocks[-1].shift_out if blocks else None))
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if plain.downsample is None else _Merging(plain.downsample)


class FastSwin(nn.Module):
    """The backbone: (B, 3, H, W) -> four maps (B, H/4.., W/4.., C_i) at strides 4, 8, 16 and 32 (patch size 4)."""

    def __init__(self, plain: Swin) -> None:
        super().__init__()
        self.patch_embed = deepcopy(plain.patch_embed)
        self.register_buffer("embed_shift", cast(Tensor, plain.patch_embed.proj.bias).detach().float())
        self.stages = nn.ModuleList(_Stage(cast(SwinStage, stage)) for stage in plain.layers)
        self.norms = nn.ModuleList(deepcopy(plain.get_submodule(f"norm{number}")) for number in range(4))
        self.plans = nn.ModuleDict()

    def forward(self, x: Tensor) -> list[Tensor]:
        kernels = own.kernels_for(x)
        x = self.patch_embed(x) if kernels is None else self._tokens(x, kernels)
        features: list[Tensor] = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            assert isinstance(stage, _Stage)
            if kernels is not None:
                x = self._stage_by_own_kernels(stage, cast(nn.LayerNorm, norm), x, features, kernels)
                continue
            shape = x.shape
            x = x.reshape(-1, shape[-1])
            for block in stage.blocks:
                assert isinstance(block, _Block)
                x = block(x, self._plan(shape, block.window, block.shift, x.device))
            x = x.view(shape)
            features.append(norm(x))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features

    def _tokens(self, x: Tensor, kernels: ModuleType) -> Tensor:
        """`patch_embed` as a product: the convolution takes three channels, and with those leaves the tensor cores."""
        embed = self.patch_embed
        side = embed.patch_size
        x = F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))
        y = F.linear(pixels_of_cells(x, side), embed.proj.weight.flatten(1))
        return _norm(kernels, embed.norm, y, cast(Tensor, self.embed_shift))

    def _stage_by_own_kernels(
        self, stage: _Stage, norm: nn.LayerNorm, x: Tensor, features: list[Tensor], kernels: ModuleType
    ) -> Tensor:
        """One stage: appends its feature, returns what the next one takes. `x` is overwritten."""
        x = x.contiguous()
        rows = x.view(-1, x.shape[-1])
        for block in stage.blocks:
            assert isinstance(block, _Block)
            block.add_to(rows, self._plan(x.shape, block.window, block.shift, x.device), kernels)
        shift = cast(_Block, stage.blocks[-1]).shift_out
        features.append(_norm(kernels, norm, x, shift))
        return x if stage.downsample is None else stage.downsample.by_own_kernels(x, shift, kernels)

    def _plan(self, shape: torch.Size, window: int, shift: int, device: torch.device) -> _Plan:
        batch, height, width = shape[:3]
        key = f"b{batch}_{height}_{width}_{window}_{shift}"
        if key not in self.plans:
            self.plans[key] = _Plan(batch, height, width, window, shift, device)
        return cast(_Plan, self.plans[key])
