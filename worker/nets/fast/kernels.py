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
