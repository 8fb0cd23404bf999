"""Our own CUDA kernels, in Triton: imported only where there is a card (worker/nets/fast/own.py).

Each computes what a few lines of the plain path do, and is compared with them on the CPU by Triton's interpreter
(tests/unit/test_kernels.py).
"""

import torch
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
        sampling: (B*H*W, 3 * taps), rows may be apart: dy of all taps, dx of all taps, modulation before its
            sigmoid. Taps are those of one or more kernels of one size, one kernel after the other.
        start, stop: positions that are computed, counted through the batch.
        kernel: side of the kernels.
    Returns:
        (stop - start, taps, C), of the type of `x`.
    """
    batch, height, width, channels = x.shape
    taps = sampling.shape[1] // 3
    assert x.is_contiguous()
    assert sampling.stride(1) == 1
    assert len(sampling) == batch * height * width
    # Elements are counted in 32 bits.
    assert max(x.numel(), len(sampling) * sampling.stride(0), (stop - start) * taps * channels) < 2**31
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
        pitch=sampling.stride(0),
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
    pitch: tl.constexpr,
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
    here = sampling + position * pitch + tap
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


#: Other ways to compute it, by `_attention_of_windows`: queries of one step, warps, and steps that are read ahead.
#: Which is fastest depends on the card and on how many windows there are; the first way is the one above.
_WINDOW_FORMS = ((64, 4, 2), (32, 2, 2), (16, 1, 1))
ATTENTION_FORMS = 1 + len(_WINDOW_FORMS)


def window_attention(
    qkv: Tensor, padding: Tensor, masks: Tensor, tokens: Tensor, kinds: Tensor, num_heads: int, form: int = 0
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
        form: which way, below ATTENTION_FORMS.
    Returns:
        (rows, dim), of the type of `qkv`.
    """
    rows, dim = len(qkv), qkv.shape[1] // 3
    windows, size = tokens.shape
    assert all(tensor.is_contiguous() for tensor in (qkv, padding, masks, tokens, kinds))
    assert max(qkv.numel(), masks.numel()) < 2**31  # elements are counted in 32 bits
    out = qkv.new_empty(rows, dim)
    channels = dim // num_heads
    block_channels = max(_LEAST_CHANNELS, triton.next_power_of_2(channels))
    given = (qkv, padding, masks, tokens, kinds, out, channels**-0.5, num_heads)
    if form:
        queries, warps, ahead = _WINDOW_FORMS[form - 1]
        main = max(_LEAST_CHANNELS, triton.next_power_of_2(size + 1) // 2)
        _attention_of_windows[(windows * num_heads,)](
            *given,
            size=size,
            channels=channels,
            block_channels=block_channels,
            queries=queries,
            tiles=triton.cdiv(size, queries),
            main=main,
            rest=max(_LEAST_CHANNELS, triton.next_power_of_2(size - main)) if size > main else 0,
            num_warps=warps,
            num_stages=ahead,
        )
        return out
    tiles = triton.cdiv(size, _QUERIES)
    _attention[(windows * num_heads * tiles,)](
        *given,
        size=size,
        channels=channels,
        block_channels=block_channels,
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


# exp2 is one instruction.
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _keys(
    qkv,
    padding,
    tokens,
    window,
    part,
    first,
    size,
    dim,
    channels: tl.constexpr,
    keys: tl.constexpr,
    block: tl.constexpr,
):
    """Keys and values of `keys` tokens of a window, two of (keys, block)."""
    key = first + tl.arange(0, keys)
    row = tl.load(tokens + window * size + key, mask=key < size, other=-1)
    # A padded token is read where the padding lies: choosing among values would take several times as many steps.
    here = tl.where(row >= 0, qkv + row * (3 * dim), padding)[:, None] + (dim + part)[None, :]
    if channels == block:
        return tl.load(here), tl.load(here + dim)
    known = (tl.arange(0, block) < channels)[None, :]
    return tl.load(here, mask=known, other=0.0), tl.load(here + dim, mask=known, other=0.0)


@triton.jit
def _scores(q, k, bias, query, first: tl.constexpr, scale, size: tl.constexpr, keys: tl.constexpr):
    """Scores and bias, times log2(e); -inf where there is no key."""
    key = first + tl.arange(0, keys)
    inside = (query < size)[:, None]
    if first + keys > size:
        inside = inside & (key < size)[None, :]
    added = tl.load(bias + (query * size)[:, None] + key[None, :], mask=inside, other=0.0).to(tl.float32)
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * _LOG2_E) + added * _LOG2_E
    if first + keys > size:
        score = tl.where((key < size)[None, :], score, float("-inf"))
    return score


# A window's keys and values are read once, and their scores are known at once: a power of two of them, and the rest.
@triton.jit(do_not_specialize=["num_heads"])
def _attention_of_windows(
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
    tiles: tl.constexpr,
    main: tl.constexpr,
    rest: tl.constexpr,
):
    dim = num_heads * channels
    head = tl.program_id(0) % num_heads
    window = tl.program_id(0) // num_heads
    channel = tl.arange(0, block_channels)
    exists = (channel < channels)[None, :]
    part = head * channels + channel
    bias = masks + (tl.load(kinds + window) * num_heads + head) * (size * size)
    k, v = _keys(qkv, padding, tokens, window, part, 0, size, dim, channels, main, block_channels)
    if rest:
        k_rest, v_rest = _keys(qkv, padding, tokens, window, part, main, size, dim, channels, rest, block_channels)
    for tile in range(tiles):
        query = tile * queries + tl.arange(0, queries)
        row = tl.load(tokens + window * size + query, mask=query < size, other=-1)
        is_real = (row >= 0)[:, None]
        here = tl.where(row >= 0, qkv + row * (3 * dim), padding)[:, None] + part[None, :]
        q = tl.load(here, mask=exists, other=0.0)
        score = _scores(q, k, bias, query, 0, scale, size, main)
        highest = tl.max(score, 1)
        if rest:
            score_rest = _scores(q, k_rest, bias, query, main, scale, size, rest)
            highest = tl.maximum(highest, tl.max(score_rest, 1))
        # Every query sees itself, so its highest score is a number.
        weight = tl.exp2(score - highest[:, None])
        total = tl.sum(weight, 1)
        result = tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        if rest:
            weight_rest = tl.exp2(score_rest - highest[:, None])
            total += tl.sum(weight_rest, 1)
            result = tl.dot(weight_rest.to(v.dtype), v_rest, result, input_precision="ieee")
        result = result / total[:, None]
        there = out + (row * dim)[:, None] + part[None, :]
        tl.store(there, result.to(out.dtype.element_ty), mask=is_real & exists)


#: Values of one program of `layer_norm`, padded ones included.
_NORM_VALUES = 2048


def layer_norm(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of x + shift: (rows, dim), contiguous -> the same, in the type of `x`.

    Args:
        shift: (dim,) float32. weight, bias: (dim,).
    """
    return _normed(x, x.new_empty(x.shape), shift, weight, bias, eps)


def layer_norm_of_cells(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of four neighbours side by side: (B, h, w, C), contiguous, h and w even -> (B, h/2, w/2, 4C).

    Their order is that of `PatchMerging`: upper left, lower left, upper right, lower right.

    Args:
        shift: (4C,) float32, added before. weight, bias: (4C,).
    """
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, height // 2, width // 2, 4 * channels)
    return _normed(x, out, shift, weight, bias, eps, quarter=channels)


def _normed(
    x: Tensor, out: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float, quarter: int = 0
) -> Tensor:
    dim = out.shape[-1]
    rows = out.numel() // dim
    assert x.is_contiguous()
    assert x.numel() < 2**31  # elements are counted in 32 bits
    block = triton.next_power_of_2(dim)
    block_rows = max(1, _NORM_VALUES // block)
    _layer_norm[(triton.cdiv(rows, block_rows),)](
        x, shift, weight, bias, out, rows, out.shape[-2], eps,
        dim=dim, quarter=quarter, block=block, block_rows=block_rows,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows", "width"])
def _layer_norm(
    x, shift, weight, bias, out, rows, width, eps,
    dim: tl.constexpr, quarter: tl.constexpr, block: tl.constexpr, block_rows: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    channel = tl.arange(0, block)
    known = channel < dim
    exists = (row < rows)[:, None] & known[None, :]
    here = (row * dim)[:, None] + channel[None, :]
    source = here
    if quarter:
        # Each row of cells is two rows of pixels, 4 * width of them.
        first = 4 * width * (row // width) + 2 * (row % width)
        which = channel // quarter
        pixel = (which % 2) * (2 * width) + which // 2
        source = (first[:, None] + pixel[None, :]) * quarter + (channel % quarter)[None, :]
    value = tl.load(x + source, mask=exists, other=0.0).to(tl.float32)
    value += tl.load(shift + channel, mask=known, other=0.0)[None, :]
    mean = tl.sum(value, 1) / dim
    value = tl.where(exists, value - mean[:, None], 0.0)
    value = value / tl.sqrt(tl.sum(value * value, 1) / dim + eps)[:, None]
    factor = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    value = value * factor + tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    tl.store(out + here, value.to(out.dtype.element_ty), mask=exists)


#: Values of one program of the kernels below, padded ones included: 16 bytes of half precision, twice, per thread.
_VALUES = 2048
#: Channels of one program of `resize`, and pixels at most.
_CHANNELS, _PIXELS = 128, 512


def resize(x: Tensor, size: tuple[int, int], bias: Tensor | None = None) -> Tensor:
    """Bilinear with corners aligned, plus a constant per channel: (B, h, w, C) -> (B, *size, C), contiguous.

    Args:
        x: copied unless its pixels, which may be further apart than C, follow each other.
        bias: (C,).
    """
    batch, height, width, channels = x.shape
    pitch = x.stride(2)
    if x.stride() != (height * width * pitch, width * pitch, pitch, 1):
        x, pitch = x.contiguous(), channels
    out = x.new_empty(batch, *size, channels)
    assert max(x.numel() // channels * pitch, out.numel()) < 2**31  # elements are counted in 32 bits
    block_channels = min(_CHANNELS, triton.next_power_of_2(channels))
    block = min(_PIXELS, _VALUES // block_channels)
    pixels = batch * size[0] * size[1]
    step_y, step_x = (
        (before - 1) / (after - 1) if after > 1 else 0.0 for before, after in zip((height, width), size, strict=True)
    )
    _resize[(triton.cdiv(pixels, block), triton.cdiv(channels, block_channels))](
        x,
        out if bias is None else bias,
        out,
        pixels,
        height,
        width,
        *size,
        step_y,
        step_x,
        pitch=pitch,
        channels=channels,
        has_bias=bias is not None,
        block=block,
        block_channels=block_channels,
    )
    return out


@triton.jit(do_not_specialize=["pixels", "height", "width", "out_height", "out_width", "step_y", "step_x"])
def _resize(
    x,
    bias,
    out,
    pixels,
    height,
    width,
    out_height,
    out_width,
    step_y,
    step_x,
    pitch: tl.constexpr,
    channels: tl.constexpr,
    has_bias: tl.constexpr,
    block: tl.constexpr,
    block_channels: tl.constexpr,
):
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    exists = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    line = pixel // out_width
    y = (line % out_height).to(tl.float32) * step_y
    x_ = (pixel % out_width).to(tl.float32) * step_x
    # Rounding may put the last one behind the last pixel.
    top = tl.minimum(y.to(tl.int32), height - 1)
    left = tl.minimum(x_.to(tl.int32), width - 1)
    fy, fx = (y - top.to(tl.float32))[:, None], (x_ - left.to(tl.float32))[:, None]
    down = tl.where(top < height - 1, width * pitch, 0)[:, None]
    right = tl.where(left < width - 1, pitch, 0)[:, None]
    corner = x + (((line // out_height * height + top) * width + left) * pitch)[:, None] + channel[None, :]
    above = tl.load(corner, mask=exists, other=0.0).to(tl.float32) * (1 - fx)
    above += tl.load(corner + right, mask=exists, other=0.0).to(tl.float32) * fx
    below = tl.load(corner + down, mask=exists, other=0.0).to(tl.float32) * (1 - fx)
    below += tl.load(corner + down + right, mask=exists, other=0.0).to(tl.float32) * fx
    value = above * (1 - fy) + below * fy
    if has_bias:
        value += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(out + pixel[:, None] * channels + channel[None, :], value.to(out.dtype.element_ty), mask=exists)


def add_bias(y: Tensor, bias: Tensor, more: Tensor | None = None, *, relu: bool) -> None:
    """In place: y + bias [+ more], and its ReLU.

    Args:
        y: (rows, C), contiguous.
        bias: (C,), or (items, C) where each item has as many rows; contiguous.
        more: like `y`.
    """
    rows, channels = y.shape
    assert y.is_contiguous()
    assert bias.is_contiguous()
    assert more is None or (more.is_contiguous() and more.shape == y.shape)
    assert y.numel() < 2**31  # elements are counted in 32 bits
    block_channels = min(_VALUES, triton.next_power_of_2(channels))
    block = _VALUES // block_channels
    _add_bias[(triton.cdiv(rows, block), triton.cdiv(channels, block_channels))](
        y,
        bias,
        y if more is None else more,
        rows,
        rows * channels // bias.numel(),
        channels=channels,
        has_more=more is not None,
        relu=relu,
        block=block,
        block_channels=block_channels,
    )


@triton.jit(do_not_specialize=["rows", "rows_of_item"])
def _add_bias(
    y,
    bias,
    more,
    rows,
    rows_of_item,
    channels: tl.constexpr,
    has_more: tl.constexpr,
    relu: tl.constexpr,
    block: tl.constexpr,
    block_channels: tl.constexpr,
):
    row = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    exists = (row < rows)[:, None] & (channel < channels)[None, :]
    here = (row * channels)[:, None] + channel[None, :]
    value = tl.load(y + here, mask=exists, other=0.0).to(tl.float32)
    shift = (row // rows_of_item * channels)[:, None] + channel[None, :]
    value += tl.load(bias + shift, mask=exists, other=0.0).to(tl.float32)
    if has_more:
        value += tl.load(more + here, mask=exists, other=0.0).to(tl.float32)
    if relu:
        value = tl.where(value < 0, 0.0, value)  # a NaN stays one
    tl.store(y + here, value.to(y.dtype.element_ty), mask=exists)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """x * sigmoid(gate): (rows, C), contiguous, and (rows, 1), rows may be apart -> like `x`."""
    rows, channels = x.shape
    assert x.is_contiguous()
    assert max(x.numel(), rows * gate.stride(0)) < 2**31  # elements are counted in 32 bits
    block_channels = min(_VALUES, triton.next_power_of_2(channels))
    block = _VALUES // block_channels
    out = x.new_empty(rows, channels)
    _gated[(triton.cdiv(rows, block), triton.cdiv(channels, block_channels))](
        x, gate, out, rows, pitch=gate.stride(0), channels=channels, block=block, block_channels=block_channels
    )
    return out


@triton.jit(do_not_specialize=["rows"])
def _gated(
    x,
    gate,
    out,
    rows,
    pitch: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
    block_channels: tl.constexpr,
):
    row = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    exists = (row < rows)[:, None] & (channel < channels)[None, :]
    here = (row * channels)[:, None] + channel[None, :]
    factor = 1 / (1 + tl.exp(-tl.load(gate + row * pitch, mask=row < rows, other=0.0).to(tl.float32)))
    value = tl.load(x + here, mask=exists, other=0.0).to(tl.float32) * factor[:, None]
    tl.store(out + here, value.to(out.dtype.element_ty), mask=exists)


#: Pixels of one program of `relax`.
_RELAXED = 256


def relax(
    level: Tensor, both: Tensor, iterations: int, smoothness: float, edge_weight: float, momentum: float
) -> Tensor:
    """`_relax` of worker/images/foreground.py, an iteration a launch in place of thirty.

    Args:
        level: (5, h, w) float32, contiguous: colours times `seen`, alpha, `seen`.
        both: (6, h, w) float32 to start from; of half that size, rounded up, each pixel stands for four; of one pixel,
            for all.
        iterations: at least one. smoothness, edge_weight: eps and omega of the equation.
        momentum: share of the last change that is added to the next.
    Returns:
        (6, h, w) in 0..1.
    """
    _, height, width = level.shape
    if both.shape[1:] == (1, 1):
        both = both.expand(6, height, width)
    now, change = both.contiguous(), level.new_empty(6, height, width)
    out, spare = level.new_empty(6, height, width), level.new_empty(6, height, width)
    assert level.is_contiguous()
    assert change.numel() < 2**31  # elements are counted in 32 bits
    # Triton launches on the thread's own device, and threads that compose have chosen none.
    with torch.cuda.device_of(level):  # type: ignore[no-untyped-call]
        for number in range(iterations):
            _relax[(triton.cdiv(height * width, _RELAXED),)](
                level, now, change, out, height, width, now.shape[1], now.shape[2], smoothness, edge_weight, momentum,
                halved=tuple(now.shape[1:]) != (height, width), first=number == 0, block=_RELAXED,
            )  # fmt: skip
            now, out, spare = out, spare, out
    return now


@triton.jit(do_not_specialize=["height", "width", "now_height", "now_width"])
def _relax(
    level, now, change, out, height, width, now_height, now_width, smoothness, edge_weight, momentum,
    halved: tl.constexpr, first: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    here = tl.program_id(0) * block + tl.arange(0, block)
    y, x = here // width, here % width
    exists = here < height * width
    plane, now_plane = height * width, now_height * now_width
    is_up, is_down = exists & (y > 0), exists & (y < height - 1)
    is_left, is_right = exists & (x > 0), exists & (x < width - 1)
    a = tl.load(level + 3 * plane + here, mask=exists, other=0.0)
    seen = tl.load(level + 4 * plane + here, mask=exists, other=0.0)
    weight_up = _weight(level, plane, here - width, is_up, a, smoothness, edge_weight)
    weight_down = _weight(level, plane, here + width, is_down, a, smoothness, edge_weight)
    weight_left = _weight(level, plane, here - 1, is_left, a, smoothness, edge_weight)
    weight_right = _weight(level, plane, here + 1, is_right, a, smoothness, edge_weight)
    total = weight_up + weight_down + weight_left + weight_right + 1e-8
    b = 1 - a
    inverse = 1 / (total * (seen * (a * a + b * b) + total))
    to_fore, to_back = (seen * b * b + total) * inverse, (seen * a * a + total) * inverse
    across = -seen * a * b * inverse
    at, up, down, left, right = here, here - width, here + width, here - 1, here + 1
    if halved:
        row = (y // 2) * now_width
        at, left, right = row + x // 2, row + (x - 1) // 2, row + (x + 1) // 2
        up, down = ((y - 1) // 2) * now_width + x // 2, ((y + 1) // 2) * now_width + x // 2
    for channel in tl.static_range(3):
        fore, back = now + channel * now_plane, now + (channel + 3) * now_plane
        sum_fore = weight_up * tl.load(fore + up, mask=is_up, other=0.0)
        sum_back = weight_up * tl.load(back + up, mask=is_up, other=0.0)
        sum_fore += weight_down * tl.load(fore + down, mask=is_down, other=0.0)
        sum_back += weight_down * tl.load(back + down, mask=is_down, other=0.0)
        sum_fore += weight_left * tl.load(fore + left, mask=is_left, other=0.0)
        sum_back += weight_left * tl.load(back + left, mask=is_left, other=0.0)
        sum_fore += weight_right * tl.load(fore + right, mask=is_right, other=0.0)
        sum_back += weight_right * tl.load(back + right, mask=is_right, other=0.0)
        colour = tl.load(level + channel * plane + here, mask=exists, other=0.0)
        solved_fore = colour * (a * to_fore + b * across) + to_fore * sum_fore + across * sum_back
        solved_back = colour * (a * across + b * to_back) + to_back * sum_back + across * sum_fore
        place_fore, place_back = channel * plane + here, (channel + 3) * plane + here
        if not first:
            solved_fore += momentum * tl.load(change + place_fore, mask=exists, other=0.0)
            solved_back += momentum * tl.load(change + place_back, mask=exists, other=0.0)
        was_fore = tl.load(fore + at, mask=exists, other=0.0)
        was_back = tl.load(back + at, mask=exists, other=0.0)
        tl.store(change + place_fore, solved_fore - was_fore, mask=exists)
        tl.store(change + place_back, solved_back - was_back, mask=exists)
        tl.store(out + place_fore, tl.minimum(tl.maximum(solved_fore, 0.0), 1.0), mask=exists)
        tl.store(out + place_back, tl.minimum(tl.maximum(solved_back, 0.0), 1.0), mask=exists)


@triton.jit
def _weight(level, plane, there, exists, a, smoothness, edge_weight):
    beside = tl.load(level + 3 * plane + there, mask=exists, other=0.0)
    seen = tl.load(level + 4 * plane + there, mask=exists, other=0.0)
    return (smoothness + edge_weight * tl.abs(a - beside)) * seen
