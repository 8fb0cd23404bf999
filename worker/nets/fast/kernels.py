"""Our own CUDA kernels, in Triton: imported only where there is a card (worker/nets/fast/own.py).

Each computes what a few lines of the plain path do, and is compared with them on the CPU by Triton's interpreter
(tests/unit/test_kernels.py).
"""

import triton
import triton.language as tl
from torch import Tensor

#: Samples of one program. With 64 channels a thread holds 32 values of each corner, read 16 bytes at a time.
_SAMPLES = 64


def deformable_columns(x: Tensor, sampling: Tensor, start: int, stop: int, kernel: int) -> Tensor:
    """The columns of a deformable convolution: bilinear samples of a map with zeros around it, times modulation.

    One kernel in place of about thirty: what lies between the prediction of the offsets and the matrix product is
    computed in registers, in float32, and written once.

    Args:
        x: (B, H, W, C), contiguous.
        sampling: (B*H*W, 3 * taps), contiguous: dy of all taps, dx of all taps, modulation before its sigmoid. Taps
            are those of one or more kernels of one size, one kernel after the other.
        start, stop: positions that are computed, counted through the batch.
        kernel: side of the kernels.
    Returns:
        (stop - start, taps, C), of the type of `x`.
    """
    batch, height, width, channels = x.shape
    taps = sampling.shape[1] // 3
    assert x.is_contiguous()
    assert sampling.is_contiguous()
    assert len(sampling) == batch * height * width
    # Elements are counted in 32 bits.
    assert max(x.numel(), sampling.numel(), (stop - start) * taps * channels) < 2**31
    out = x.new_empty(stop - start, taps, channels)
    samples = (stop - start) * taps
    _columns[(triton.cdiv(samples, _SAMPLES),)](
        x,
        sampling,
        out,
        start,
        samples,
        height,
        width,
        taps=taps,
        kernel=kernel,
        channels=channels,
        block_channels=triton.next_power_of_2(channels),
        block=_SAMPLES,
    )
    return out


# Taps and kernel are constants, so that dividing by them is a multiplication; one program serves all other numbers.
@triton.jit(do_not_specialize=["start", "samples", "height", "width"])
def _columns(
    x,
    sampling,
    out,
    start,
    samples,
    height,
    width,
    taps: tl.constexpr,
    kernel: tl.constexpr,
    channels: tl.constexpr,
    block_channels: tl.constexpr,
    block: tl.constexpr,
):
    sample = tl.program_id(0) * block + tl.arange(0, block)
    real = sample < samples
    position = start + sample // taps
    tap = sample % taps
    here = sampling + position * (3 * taps) + tap
    dy = tl.load(here, mask=real, other=0.0).to(tl.float32)
    dx = tl.load(here + taps, mask=real, other=0.0).to(tl.float32)
    scale = 1 / (1 + tl.exp(-tl.load(here + 2 * taps, mask=real, other=0.0).to(tl.float32)))

    item = position // (height * width)
    pixel = position % (height * width)
    tap = tap % (kernel * kernel)
    y = dy + (tap // kernel - kernel // 2 + pixel // width).to(tl.float32)
    x_ = dx + (tap % kernel - kernel // 2 + pixel % width).to(tl.float32)
    # Beyond one pixel outside all is zero. Compared, not min and max: those would turn a NaN into a position.
    y = tl.where(y < -1, -1.0, y)
    y = tl.where(y > height, height.to(tl.float32), y)
    x_ = tl.where(x_ < -1, -1.0, x_)
    x_ = tl.where(x_ > width, width.to(tl.float32), x_)
    top, left = tl.floor(y), tl.floor(x_)
    fy, fx = y - top, x_ - left
    # A NaN is at 0 as well as anywhere; its weights are NaN.
    row = tl.where(top == top, top, 0.0).to(tl.int32)
    column = tl.where(left == left, left, 0.0).to(tl.int32)
    lower, upper = scale * fy, scale * (1 - fy)

    above, below = (row >= 0) & (row < height), (row >= -1) & (row < height - 1)
    before, behind = (column >= 0) & (column < width), (column >= -1) & (column < width - 1)
    channel = tl.arange(0, block_channels)[None, :]
    exists = real[:, None] & (channel < channels)
    corner = (((item * height + row) * width + column) * channels)[:, None] + channel
    down, right = width * channels, channels
    value = tl.load(x + corner, mask=exists & (above & before)[:, None], other=0.0).to(tl.float32)
    result = value * (upper * (1 - fx))[:, None]
    value = tl.load(x + corner + right, mask=exists & (above & behind)[:, None], other=0.0).to(tl.float32)
    result += value * (upper * fx)[:, None]
    value = tl.load(x + corner + down, mask=exists & (below & before)[:, None], other=0.0).to(tl.float32)
    result += value * (lower * (1 - fx))[:, None]
    value = tl.load(x + corner + down + right, mask=exists & (below & behind)[:, None], other=0.0).to(tl.float32)
    result += value * (lower * fx)[:, None]
    tl.store(out + sample[:, None] * channels + channel, result.to(out.dtype.element_ty), mask=exists)


#: Queries and keys of one step. A window of 144 tokens is three times 64 queries and five times 32 keys.
_QUERIES, _KEYS = 64, 32
#: The matrix units take no fewer channels at once.
_LEAST_CHANNELS = 16


def window_attention(
    qkv: Tensor, padding: Tensor, masks: Tensor, tokens: Tensor, kinds: Tensor, num_heads: int
) -> Tensor:
    """Attention inside windows, from rows of tokens to rows of tokens.

    Gathering a window's tokens, its bias and mask, and putting the answers back are part of it, so no tensor in window
    order is ever written.

    Args:
        qkv: (rows, 3 * dim), contiguous: query, key and value of every real token.
        padding: (3 * dim,), the same for every padded token.
        masks: (kinds, heads, N, N), contiguous: what is added to the scores in a window of each kind.
        tokens: (windows, N) int32, contiguous: the row of each token, -1 for a padded one; each row stands there once.
        kinds: (windows,) int32.
    Returns:
        (rows, dim), of the type of `qkv`.
    """
    rows, dim = len(qkv), qkv.shape[1] // 3
    windows, size = tokens.shape
    assert all(tensor.is_contiguous() for tensor in (qkv, padding, masks, tokens, kinds))
    assert max(qkv.numel(), masks.numel()) < 2**31  # elements are counted in 32 bits
    out = qkv.new_empty(rows, dim)
    tiles = triton.cdiv(size, _QUERIES)
    _attention[(windows * num_heads * tiles,)](
        qkv,
        padding,
        masks,
        tokens,
        kinds,
        out,
        (dim // num_heads) ** -0.5,
        num_heads,
        size=size,
        channels=dim // num_heads,
        block_channels=max(_LEAST_CHANNELS, triton.next_power_of_2(dim // num_heads)),
        queries=_QUERIES,
        keys=_KEYS,
    )
    return out


@triton.jit(do_not_specialize=["num_heads"])  # one program serves all stages
def _attention(
    qkv,
    padding,
    masks,
    tokens,
    kinds,
    out,
    scale,
    num_heads,
    size: tl.constexpr,
    channels: tl.constexpr,
    block_channels: tl.constexpr,
    queries: tl.constexpr,
    keys: tl.constexpr,
):
    tiles: tl.constexpr = (size + queries - 1) // queries
    dim = num_heads * channels
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % num_heads
    window = tl.program_id(0) // (tiles * num_heads)

    channel = tl.arange(0, block_channels)
    exists = (channel < channels)[None, :]
    part = head * channels + channel
    query_padding = tl.load(padding + part, mask=channel < channels, other=0.0)[None, :]
    key_padding = tl.load(padding + dim + part, mask=channel < channels, other=0.0)[None, :]
    value_padding = tl.load(padding + 2 * dim + part, mask=channel < channels, other=0.0)[None, :]

    query = tile * queries + tl.arange(0, queries)
    query_row = tl.load(tokens + window * size + query, mask=query < size, other=-1)
    is_real = (query_row >= 0)[:, None]
    q = tl.load(qkv + (query_row * (3 * dim))[:, None] + part[None, :], mask=is_real & exists, other=0.0)
    q = tl.where(is_real, q, query_padding)
    bias = masks + (tl.load(kinds + window) * num_heads + head) * (size * size)

    # Sums over keys so far, each times exp(-highest): a row's highest score may still rise. Finite at first, because a
    # row may be masked in a whole block, and inf - inf is none.
    highest = tl.full((queries,), -1e30, tl.float32)
    total = tl.zeros((queries,), tl.float32)
    result = tl.zeros((queries, block_channels), tl.float32)
    for first in range(0, size, keys):
        key = first + tl.arange(0, keys)
        key_row = tl.load(tokens + window * size + key, mask=key < size, other=-1)
        key_is_real = (key_row >= 0)[:, None]
        here = qkv + (key_row * (3 * dim))[:, None] + (dim + part)[None, :]
        k = tl.where(key_is_real, tl.load(here, mask=key_is_real & exists, other=0.0), key_padding)
        v = tl.where(key_is_real, tl.load(here + dim, mask=key_is_real & exists, other=0.0), value_padding)
        inside = (query < size)[:, None] & (key < size)[None, :]
        added = tl.load(bias + (query * size)[:, None] + key[None, :], mask=inside, other=0.0).to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + added
        score = tl.where((key < size)[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        shrink = tl.exp(highest - higher)
        weight = tl.exp(score - higher[:, None])
        total = total * shrink + tl.sum(weight, 1)
        result = result * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        highest = higher
    result = result / total[:, None]
    there = out + (query_row * dim)[:, None] + part[None, :]
    tl.store(there, result.to(out.dtype.element_ty), mask=is_real & exists)


#: Values of one program of `layer_norm`, padded ones included.
_NORM_VALUES = 2048


def layer_norm(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of x + shift: (rows, dim), contiguous -> the same, in the type of `x`.

    Args:
        shift: (dim,) float32. weight, bias: (dim,).
    """
    rows, dim = x.shape
    assert x.is_contiguous()
    assert x.numel() < 2**31  # elements are counted in 32 bits
    block = triton.next_power_of_2(dim)
    block_rows = max(1, _NORM_VALUES // block)
    out = x.new_empty(rows, dim)
    _layer_norm[(triton.cdiv(rows, block_rows),)](
        x, shift, weight, bias, out, rows, eps, dim=dim, block=block, block_rows=block_rows
    )
    return out


@triton.jit(do_not_specialize=["rows"])
def _layer_norm(
    x, shift, weight, bias, out, rows, eps, dim: tl.constexpr, block: tl.constexpr, block_rows: tl.constexpr
):
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    channel = tl.arange(0, block)
    known = channel < dim
    exists = (row < rows)[:, None] & known[None, :]
    here = (row * dim)[:, None] + channel[None, :]
    value = tl.load(x + here, mask=exists, other=0.0).to(tl.float32)
    value += tl.load(shift + channel, mask=known, other=0.0)[None, :]
    mean = tl.sum(value, 1) / dim
    value = tl.where(exists, value - mean[:, None], 0.0)
    value = value / tl.sqrt(tl.sum(value * value, 1) / dim + eps)[:, None]
    factor = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    value = value * factor + tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    tl.store(out + here, value.to(out.dtype.element_ty), mask=exists)
