"""The deformable ASPP in one pass: every branch's samples and products for some positions, then the next positions.

The same sums as worker/nets/decoder.py DeformableASPP, by other means:

- Branches with one kernel size share one convolution for offsets and modulation.
- A sample is four rows of the map, times bilinear weight and modulation: one embedding-bag call gathers and adds them.
  The map stands in a ring of zeros, so that a corner outside needs no test. Its rows must be contiguous: on a strided
  view embedding_bag takes a path that is 50 times slower.
- Positions go in chunks whose columns stay in the cache; batch norm, ReLU and the modulation's factor of two are in
  the matrix product; the last 1x1 convolution follows at once, so no branch's whole map is ever in memory.
- On CUDA the columns of a chunk are one kernel of our own, where it can run (worker/nets/fast/own.py).
- Coordinates are float32 whatever the weights' type (see worker/nets/deform_conv.py).
"""

from types import ModuleType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.nets.decoder import DeformableASPP, DeformableBranch
from worker.nets.fast import own
from worker.nets.fast.layers import Conv, Linear, fold_batch_norm

#: Column elements (positions * taps * channels) held at once. CPU: 16 MiB stay in the last-level cache, and the
#: allocator reuses memory of that size instead of asking the system for new pages each time.
_COLUMN_LIMIT = 2**22
#: CUDA: few, large launches; 128 MiB in fp16.
_COLUMN_LIMIT_CUDA = 2**26
#: Chunks on CUDA are multiples of a matrix kernel's tile.
_TILE = 256


def _column_limit(device: torch.device) -> int:
    return _COLUMN_LIMIT_CUDA if device.type == "cuda" else _COLUMN_LIMIT


class _Branches(nn.Module):
    """The branches of one kernel size.

    Attributes:
        kernel: side of the kernels.
        taps: sampled positions of all its branches together.
        sampling: convolution to (dy of all taps, dx of all taps, modulation of all taps).
        products: per branch, columns (positions, k*k*C) -> (positions, width), batch norm and ReLU included.
    """

    tap_y: Tensor
    tap_x: Tensor

    def __init__(self, branches: list[DeformableBranch]) -> None:
        super().__init__()
        convs = [branch.atrous_conv for branch in branches]
        like = convs[0].regular_conv.weight
        self.kernel = kernel = like.shape[-1]
        self.taps = len(branches) * kernel**2
        weights, biases = [], []
        for part, conv_name in ((0, "offset_conv"), (1, "offset_conv"), (None, "modulator_conv")):
            for conv in convs:
                layer = conv.get_submodule(conv_name)
                assert isinstance(layer, nn.Conv2d)
                assert layer.bias is not None
                pick = slice(None) if part is None else slice(part, None, 2)
                weights.append(layer.weight[pick])
                biases.append(layer.bias[pick])
        self.sampling = Conv(torch.cat(weights), torch.cat(biases), like=like)
        self.products = nn.ModuleList()
        for branch in branches:
            weight, bias = fold_batch_norm(branch.bn, branch.atrous_conv.regular_conv.weight, None)
            # (O, C, k, k) -> (O, k*k*C); modulation is 2 * sigmoid, and the 2 is in here.
            matrix = 2 * weight.permute(0, 2, 3, 1).flatten(1)
            self.products.append(Linear(matrix, bias, "relu", like=like))
        tap = torch.arange(kernel, device=like.device, dtype=torch.float32) - kernel // 2
        self.register_buffer("tap_y", tap.repeat_interleave(kernel).repeat(len(branches)))
        self.register_buffer("tap_x", tap.repeat(kernel).repeat(len(branches)))

    def forward(self, rows: Tensor, sampling: Tensor, grid: "_Grid", start: int) -> list[Tensor]:
        """Some positions of one picture through every branch.

        Args:
            rows: the picture's map in its ring of zeros, (rows * pitch, C).
            sampling: (n, 3 * taps), what `self.sampling` says at the positions.
            grid: where positions are; `start` is the first of these n.
        Returns:
            Per branch (n, width).
        """
        index, factor = self._corners(sampling.float(), grid, start)
        columns = F.embedding_bag(
            index.view(-1, 4), rows, mode="sum", per_sample_weights=factor.view(-1, 4).to(rows.dtype)
        )
        return self.products_of(columns, len(index))

    def products_of(self, columns: Tensor, positions: int) -> list[Tensor]:
        """Columns of so many positions, (positions, taps, C) in any shape -> per branch (positions, width)."""
        columns = columns.view(positions, len(self.products), -1)  # (n, branches, k*k*C)
        return [product(columns[:, number]) for number, product in enumerate(self.products)]

    def _corners(self, sampling: Tensor, grid: "_Grid", start: int) -> tuple[Tensor, Tensor]:
        """Row numbers of every sample's four corners and their weights: (n, taps, 4) int32 and float32."""
        dy, dx, modulation = sampling.chunk(3, dim=1)
        # Clamped to the ring, a sample has its whole weight on zeros.
        stop = start + len(sampling)
        y = (dy + self.tap_y).add_(grid.y[start:stop]).clamp_(-1, grid.height)
        x = (dx + self.tap_x).add_(grid.x[start:stop]).clamp_(-1, grid.width)
        top, left = y.floor(), x.floor()
        fy, fx = y.sub_(top), x.sub_(left)
        # Pixel (0, 0) stands in row 1, column 1 of the ring. Exact in float32 up to 2**24 rows; a NaN becomes some
        # valid row, and its weights are NaN anyway.
        corner = left.add_(top, alpha=grid.pitch).add_(grid.pitch + 1).int().clamp_(0, grid.last_corner)
        scale = modulation.sigmoid()
        lower = scale * fy
        upper = scale.sub_(lower)
        factor = torch.empty(*corner.shape, 4, device=corner.device)
        torch.mul(upper, fx, out=factor[..., 1])
        torch.mul(lower, fx, out=factor[..., 3])
        torch.sub(upper, factor[..., 1], out=factor[..., 0])
        torch.sub(lower, factor[..., 3], out=factor[..., 2])
        return corner.unsqueeze(-1) + grid.steps, factor


class _Grid:
    """Positions of a map, and how its rows are numbered inside a ring of zeros (two wide at the far sides).

    The far sides need two because a sample clamped onto the ring still names the corner behind it, with weight zero.
    """

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.height, self.width = height, width
        self.pitch = width + 3
        self.last_corner = (height + 2) * self.pitch - 2
        float32 = {"device": device, "dtype": torch.float32}
        self.y = torch.arange(height, **float32).repeat_interleave(width).view(-1, 1)  # type: ignore[call-overload]
        self.x = torch.arange(width, **float32).repeat(height).view(-1, 1)  # type: ignore[call-overload]
        two = torch.arange(2, device=device, dtype=torch.int32)
        self.steps = (two.view(2, 1) * self.pitch + two).flatten()

    def ringed(self, x: Tensor) -> Tensor:
        """(H, W, C) -> contiguous rows ((H + 3) * pitch, C)."""
        return F.pad(x, (0, 0, 1, 2, 1, 2)).view(-1, x.shape[-1])


class FastASPP(nn.Module):
    """DeformableASPP for inference: (B, H, W, C) -> the same shape."""

    pool_weight: Tensor
    pool_bias: Tensor
    pool_out: Tensor

    def __init__(self, plain: DeformableASPP) -> None:
        super().__init__()
        like = plain.conv1.weight
        branches = [plain.aspp1, *(cast(DeformableBranch, branch) for branch in plain.aspp_deforms)]
        kernels = [branch.atrous_conv.regular_conv.weight.shape[-1] for branch in branches]
        groups = {kernel: [number for number, k in enumerate(kernels) if k == kernel] for kernel in kernels}
        self.groups = nn.ModuleList(_Branches([branches[number] for number in group]) for group in groups.values())
        self.columns_per_position = max(k**2 * len(groups[k]) for k in groups) * like.shape[0]

        weight, bias = fold_batch_norm(plain.bn1, plain.conv1.weight[:, :, 0, 0], None)
        *parts, pooled = weight.chunk(len(branches) + 1, dim=1)
        order = [number for group in groups.values() for number in group]
        # ReLU comes after the pooled branch's share is added.
        self.join = Linear(torch.cat([parts[number] for number in order], dim=1), bias, like=like)
        _, conv, norm, _ = plain.global_avg_pool
        assert isinstance(conv, nn.Conv2d)
        pool_weight, pool_bias = fold_batch_norm(norm, conv.weight[:, :, 0, 0], None)
        self.register_buffer("pool_weight", pool_weight.to(like))
        self.register_buffer("pool_bias", pool_bias.to(like))
        self.register_buffer("pool_out", pooled.to(like))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.relu(F.linear(x.mean(dim=(1, 2)), self.pool_weight, self.pool_bias))
        pooled = F.linear(pooled, self.pool_out)  # (B, C): the same for every position of a picture
        kernels = own.kernels_for(x)
        if kernels is not None:
            return self._by_own_kernels(x, pooled, kernels)
        batch, height, width, channels = x.shape
        grid = _Grid(height, width, x.device)
        groups = [cast(_Branches, group) for group in self.groups]
        sampling = [group.sampling(x).flatten(1, 2) for group in groups]  # (B, H*W, 3 * taps) each
        step = max(1, _column_limit(x.device) // self.columns_per_position)
        y = torch.empty_like(x).view(batch, height * width, channels)
        for item in range(batch):
            rows = grid.ringed(x[item])
            for start in range(0, height * width, step):
                part = slice(start, min(start + step, height * width))
                branches: list[Tensor] = []
                for group, samples in zip(groups, sampling, strict=True):
                    branches += group(rows, samples[item, part], grid, start)
                y[item, part] = self.join(torch.cat(branches, dim=1)).add_(pooled[item]).relu_()
        return y.view_as(x)

    def _by_own_kernels(self, x: Tensor, pooled: Tensor, kernels: ModuleType) -> Tensor:
        """The whole batch as one row of positions: x (B, H, W, C), pooled (B, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        positions = batch * height * width
        groups = [cast(_Branches, group) for group in self.groups]
        sampling = [group.sampling(x).flatten(0, 2) for group in groups]  # (B*H*W, 3 * taps) each
        step = max(1, _column_limit(x.device) // self.columns_per_position // _TILE) * _TILE
        y = x.new_empty(positions, channels)
        join = cast(Tensor, self.join.weight)
        for start in range(0, positions, step):
            stop = min(start + step, positions)
            part, first = y[start:stop], 0
            for group, samples in zip(groups, sampling, strict=True):
                columns = kernels.deformable_columns(x, samples, start, stop, group.kernel)
                # Added up one by one: side by side they would have to be written once more.
                for branch in group.products_of(columns, stop - start):
                    weight = join[:, first : first + branch.shape[1]].t()
                    if first:
                        part.addmm_(branch, weight)
                    else:
                        torch.mm(branch, weight, out=part)
                    first += branch.shape[1]
        kernels.add_bias(y, pooled + cast(Tensor, self.join.bias), relu=True)
        return y.view_as(x)
