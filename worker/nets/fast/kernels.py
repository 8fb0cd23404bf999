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
