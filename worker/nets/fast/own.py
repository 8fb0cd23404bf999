"""Whether our own kernels can run: they need a card, Triton, and the C compiler that Triton starts them with."""

from functools import cache
from types import ModuleType

import structlog
import torch

log = structlog.get_logger(__name__)


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
        log.warning("own_kernels_unavailable", detail=f"{type(exc).__name__}: {exc}".splitlines()[0])
        return None
    return kernels


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
    found = (columns.flatten(), seen.flatten(), normed[0])
    expected = ((x / 2).flatten().tolist(), (3.5, 3.5, 8.0), (2 - 0.5**0.5, 2 - 0.5**0.5, 2 + 2**0.5))
    if not all(torch.allclose(y, y.new_tensor(right), rtol=2e-3) for y, right in zip(found, expected, strict=True)):
        raise RuntimeError("a kernel gives wrong numbers on this card")
