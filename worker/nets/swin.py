"""Swin Transformer backbone with four normed feature maps.

Source: Liu et al. 2021, Swin Transformer (arXiv 2103.14030): patch embedding and merging (section 3.1), shifted
window attention with relative position bias (section 3.2, equation 4). Module names follow the published
checkpoints' key layout, so their tensors load without renaming.

Sizes need not fit the windows: features are padded with zeros after the first norm of a block, as in the reference
for dense prediction. Padded tokens therefore have q, k, v equal to the qkv bias, and they do take part in attention.
Difference from the reference: attention is torch's scaled_dot_product_attention.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.nets.config import SwinConfig

#: The value of the reference and the published checkpoints; the golden vectors cannot see another one.
LAYER_NORM_EPS = 1e-5


def split_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut a feature map into square windows.

    Args:
        x: (B, H, W, C) features; H and W are multiples of window_size.
        window_size: side of a window, in tokens.
    Returns:
        (B * H/window_size * W/window_size, window_size**2, C), windows and tokens in row order.
    Raises:
        ValueError: H or W is not a multiple of window_size.
    Source: Liu et al. 2021, section 3.2.
    """
    b, h, w, c = x.shape
    if h % window_size or w % window_size:
        raise ValueError(f"a {h}x{w} map cannot be cut into windows of {window_size}; pad it first")
    x = x.view(b, h // window_size, window_size, w // window_size, window_size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window_size * window_size, c)


def join_windows(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: (B * windows, window_size**2, C) -> (B, height, width, C)."""
    rows, columns = height // window_size, width // window_size
    x = windows.view(-1, rows, columns, window_size, window_size, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def shift_mask(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Which tokens of a shifted window may see each other: those that were neighbours before the cyclic shift.

    Returns:
        (windows, N, N) bool, N = window_size**2; True where attention is allowed.
    Source: Liu et al. 2021, section 3.2, "efficient batch computation".
    """

    def regions(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window_size).long() + (position >= size - shift).long()  # 0, 1 or 2

    region = regions(height).view(-1, 1) * 3 + regions(width)  # (H, W)
    windows = split_windows(region.view(1, height, width, 1), window_size).squeeze(-1)  # (windows, N)
    return windows.unsqueeze(1) == windows.unsqueeze(2)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position.

    Shapes: (B * windows, N, dim) -> the same, N = window_size**2.
    Source: Liu et al. 2021, equation 4.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, window_size: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide {dim} channels")
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        if not self.relative_position_bias_table.is_meta:  # nothing to fill; torch 2.11 would import Dynamo for it, 5 s
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", self._index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    @staticmethod
    def _index(window_size: int) -> Tensor:
        """(N, N) row of the bias table for each pair of tokens: (dy, dx), shifted to start at zero, in row order."""
        # In NumPy: a network is built on the meta device, where this arithmetic would make torch import its compiler,
        # most of the time that a worker took to load its models (docs/performance.md).
        y, x = np.divmod(np.arange(window_size**2), window_size)
        dy = y[:, None] - y[None, :] + window_size - 1
        dx = x[:, None] - x[None, :] + window_size - 1
        return torch.from_numpy(dy * (2 * window_size - 1) + dx)

    def forward(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (n, heads, N, d) each
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        bias = bias.view(tokens, tokens, self.num_heads).permute(2, 0, 1)  # (heads, N, N)
        if allowed is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))
        else:
            windows = allowed.shape[0]
            mask = bias.masked_fill(~allowed.unsqueeze(1), float("-inf"))  # (windows, heads, N, N)

            def group(t: Tensor) -> Tensor:  # (B, windows * heads, N, d): one mask serves the whole batch
                return t.reshape(n // windows, windows * self.num_heads, tokens, -1)

            y = F.scaled_dot_product_attention(group(q), group(k), group(v), attn_mask=mask.flatten(0, 1).unsqueeze(0))
            # Not a view: on a card the answer may lie as (B, N, windows * heads, d).
            y = y.reshape(n, self.num_heads, tokens, -1)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """One block: (shifted) window attention, then an MLP, each behind a norm and beside a shortcut.

    Shapes: (B, H, W, dim) -> the same, any H and W.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = WindowAttention(dim, window_size, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        size = self.window_size
        x = F.pad(x, (0, 0, 0, -w % size, 0, -h % size))
        padded_h, padded_w = x.shape[1:3]
        allowed = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
            allowed = shift_mask(padded_h, padded_w, size, self.shift, x.device)
        x = join_windows(self.attn(split_windows(x, size), allowed), size, padded_h, padded_w)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :h, :w]


class PatchMerging(nn.Module):
    """Halve the resolution and double the channels: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2C).

    The four neighbours are joined in the order (0,0), (1,0), (0,1), (1,1) of (row, column).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=LAYER_NORM_EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), dim=-1)
        return self.reduction(self.norm(x))


class PatchEmbed(nn.Module):
    """Pixels to tokens: (B, 3, H, W) -> (B, ceil(H/patch), ceil(W/patch), embed_dim)."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        x = F.pad(x, (0, -w % self.patch_size, 0, -h % self.patch_size))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    """The blocks of one resolution, every second one shifted by half a window, and the merging behind them."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        dim = config.widths[stage]
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                config.num_heads[stage],
                config.window_size,
                shift=config.window_size // 2 if block % 2 else 0,
                mlp_ratio=config.mlp_ratio,
            )
            for block in range(config.depths[stage])
        )
        self.downsample = PatchMerging(dim) if stage < 3 else None


class Swin(nn.Module):
    """The backbone: (B, 3, H, W) -> four maps (B, C_i, H/4.., W/4..), at strides 4, 8, 16 and 32 (patch size 4)."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.layers = nn.ModuleList(SwinStage(config, stage) for stage in range(4))
        for stage, dim in enumerate(config.widths):
            self.add_module(f"norm{stage}", nn.LayerNorm(dim, eps=LAYER_NORM_EPS))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        features = []
        for number, stage in enumerate(self.layers):
            assert isinstance(stage, SwinStage)
            for block in stage.blocks:
                x = block(x)
            # Each map is normed on its way out only; the next stage continues from the raw features.
            features.append(self.get_submodule(f"norm{number}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features
