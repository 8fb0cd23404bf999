"""Whether our own kernels can run: they need a card, Triton, and the C compiler that Triton starts them with."""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from types import ModuleType

import structlog
import torch
from torch import Tensor

log = structlog.get_logger(__name__)


def told(exc: BaseException) -> str:
    """An exception's type and the first line of what it says, which may be nothing: for the log."""
    return f"{type(exc).__name__}: {exc}".splitlines()[0]


@cache
def own_kernels(device: torch.device) -> ModuleType | None:
    """worker/nets/fast/kernels.py where it works, else None: then everything is computed by torch's operators.

    Tried once per device, with one warning where there is a card and it fails.
    """
    if device.type != "cuda":
        return None
    try:
        from worker.nets.fast import kernels

        with torch.cuda.device(device):
            _try(kernels, device)
    except Exception as exc:  # noqa: BLE001, RUF100 - no Triton, no compiler, no folder: whatever it is, torch still works
        log.warning("own_kernels_unavailable", detail=told(exc))
        return None
    return kernels


def try_beside(device: torch.device, threads: ThreadPoolExecutor) -> Future[ModuleType | None]:
    """The same, tried in another thread, so that models can be loaded beside Triton's import and its first launches."""
    if device.type == "cuda" and device.index is None:  # tensors name their card, and it is asked for by that name
        device = torch.device("cuda", torch.cuda.current_device())
    return threads.submit(own_kernels, device)


def kernels_for(x: Tensor) -> ModuleType | None:
    """The same for a pass over `x`; a compiler sees torch's operators, which it can take apart."""
    return None if torch.compiler.is_compiling() else own_kernels(x.device)


#: Which candidate was the fastest, by what was computed.
_fastest: dict[Hashable, int] = {}
#: Runs of a candidate that are timed, behind one that is not.
_TIMED_RUNS = 5
#: Rows of the answers that are compared, at least, where there are as many.
_COMPARED_ROWS = 4096
#: How far a candidate may be from the first: half precision's rounding, and an approximate GELU.
_CLOSE = 0.02


def fastest(key: Hashable, candidates: Sequence[Callable[[], Tensor]]) -> Tensor:
    """What the candidate computes that is fastest on the current CUDA device, which is tried when `key` comes first.

    Args:
        key: whatever the times depend on.
        candidates: ways to compute the same; the first is the one to trust.
    """
    if key not in _fastest:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]()
        _fastest[key] = _race(candidates, _milliseconds)
    return candidates[_fastest[key]]()


def _race(candidates: Sequence[Callable[[], Tensor]], time: Callable[[Callable[[], Tensor]], float]) -> int:
    """Number of the fastest candidate, those left out that fail or compute something else than the first."""
    expected = _sampled(candidates[0]())
    best, least = 0, time(candidates[0])
    for number, candidate in enumerate(candidates[1:], 1):
        try:
            if not torch.allclose(_sampled(candidate()), expected, atol=_CLOSE, rtol=_CLOSE, equal_nan=True):
                raise RuntimeError("it gives wrong numbers on this card")
            milliseconds = time(candidate)
        except torch.OutOfMemoryError:
            raise
        except Exception as exc:  # noqa: BLE001, RUF100 - what a card does not take is for the compiler to say
            log.warning("own_kernel_left_out", candidate=number, detail=told(exc))
            continue
        if milliseconds < least:
            best, least = number, milliseconds
    return best


def _sampled(y: Tensor) -> Tensor:
    """Some rows, from all over: comparing whole maps would take more memory than the pass."""
    return y[:: max(1, len(y) // _COMPARED_ROWS)].clone()


def _milliseconds(run: Callable[[], Tensor]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    run()
    start.record()
    for _ in range(_TIMED_RUNS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _try(kernels: ModuleType, device: torch.device) -> None:
    """One tiny launch of each kernel, compared with what it must give.

    Raises:
        RuntimeError: it gave something else.
    """
    x = torch.arange(24, device=device, dtype=torch.float16).view(1, 2, 3, 4)
    # No displacement, and a modulation of sigmoid(0).
    columns = kernels.deformable_columns(x, x.new_zeros(6, 3), 0, 6, 1)
    # Two windows of two tokens, the last one padded; no scores but masks, so answers are means of what may be seen.
    qkv = torch.arange(9, device=device, dtype=torch.float16).view(3, 3)
    qkv[:, :2] = 0
    masks = torch.tensor([[[[0, 0], [0, 0]]], [[[0, -torch.inf], [0, 0]]]], device=device, dtype=torch.float16)
    tokens, kinds = torch.tensor([[0, 1], [2, -1]], device=device), torch.tensor([0, 1], device=device)
    seen = kernels.window_attention(qkv, qkv[0], masks, tokens.int(), kinds.int(), 1)
    one = torch.ones(3, device=device)
    normed = kernels.layer_norm(qkv, one, one.half(), 2 * one.half(), 1e-5)
    enlarged = kernels.resize(x.flatten()[:16].view(1, 2, 2, 4)[..., :2], (3, 3), one.half()[:2])[0, :, :, 1]
    summed = x[0, :, 0] - 8
    kernels.add_bias(summed, x[0, 0, :2], summed.clone(), relu=True)
    gated = kernels.gated(qkv, torch.zeros(3, 2, device=device, dtype=torch.float16)[:, :1])
    four = one.new_ones(4)
    cells = kernels.layer_norm_of_cells(x[:, :, :2, :1].contiguous(), 0 * four, four, 0 * four, 1e-5)
    level = (torch.arange(30, device=device) * 3 % 7 / 8 + 0.05).view(5, 3, 2)
    both = (torch.arange(12, device=device) * 2 % 5 / 5).view(6, 2, 1)
    relaxed = torch.stack(
        [kernels.relax(level, start, 2, 1e-5, 1.0, 0.85).sum((1, 2)) for start in (both, both[:, :1])]
    )
    found = (columns, seen, normed[0], enlarged, summed, gated, cells, relaxed)
    expected = (
        (x / 2).flatten().tolist(),
        (3.5, 3.5, 8.0),
        (2 - 0.5**0.5, 2 - 0.5**0.5, 2 + 2**0.5),
        (2, 4, 6, 6, 8, 10, 10, 12, 14),
        (0, 0, 0, 0, 12, 15, 18, 21),
        (qkv / 2).flatten().tolist(),
        (-1.265, 0.632, -0.632, 1.265),
        (2.8746, 5.3761, 4.0938, 4.5865, 4.3582, 4.2153, 2.7753, 5.8212, 4.6722, 4.7109, 4.4814, 4.0936),
    )
    pairs = [(y.flatten(), y.new_tensor(right)) for y, right in zip(found, expected, strict=True)]
    if not all(torch.allclose(y, right, rtol=2e-3) for y, right in pairs):
        raise RuntimeError("a kernel gives wrong numbers on this card")
