"""What the network benchmarks share: networks with the golden weights, their FLOP, medians, a card's matrix rate."""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.golden import fill_recipe
from worker.nets import CONFIGS, BiRefNet
from worker.nets import deform_conv as deform_module
from worker.nets.fast import own
from worker.nets.weights import fill_in


def golden_network(variant: str) -> BiRefNet:
    """A network with the weights of the golden vectors, so that no checkpoint is needed; fp32 on the CPU.

    Weights are made once and shared by all networks of a variant: move a network, but do not change its weights.
    """
    with torch.device("meta"):  # initial values, drawn and thrown away, would take longer than the golden ones
        model = BiRefNet(CONFIGS[variant])
    fill_in(model, dict(_golden_values(variant)), torch.device("cpu"))
    return model.eval()


@cache
def _golden_values(variant: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in BiRefNet(CONFIGS[variant]).state_dict().items()}
    with ThreadPoolExecutor() as threads:
        values = threads.map(lambda key: fill_recipe.value(key, shapes[key]), shapes)
        return {key: torch.from_numpy(value) for key, value in zip(shapes, values, strict=True) if value is not None}


def golden_batch(size: int, batch: int) -> Tensor:
    """(batch, 3, size, size) float32, the golden picture and itself upside down."""
    x = fill_recipe.image_tensor(size, size)
    return torch.cat([x.flip(2) if number % 2 else x for number in range(batch)])


def flop_of(variant: str, size: int, make: Callable[[BiRefNet], nn.Module] = lambda model: model) -> float:
    """Floating-point operations of one picture (products, convolutions, attention), counted without running it."""
    with torch.device("meta"):
        net, x = make(BiRefNet(CONFIGS[variant]).eval()), torch.empty(1, 3, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    return float(counter.get_total_flops())


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, the device's work included."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def interleaved(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, taken in turns after one warm-up each, so that a busy minute meets all of them."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s of a large matrix product on this device: the best of ten."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


class Torchvision(nn.Module):
    """A plain network with torchvision's compiled operator in place of its deformable convolution."""

    def __init__(self, model: BiRefNet) -> None:
        super().__init__()
        self.model = model
        self._operator: Any = importlib.import_module("torchvision.ops").deform_conv2d

    def forward(self, x: Tensor) -> Tensor:
        ours, operator = deform_module.deform_conv2d, self._operator

        def theirs(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
            y: Tensor = operator(x, offset, weight, padding=weight.shape[-1] // 2, mask=mask.to(x.dtype))
            return y

        deform_module.deform_conv2d = theirs
        try:
            y: Tensor = self.model(x)
            return y
        finally:
            deform_module.deform_conv2d = ours


class WithoutOwnKernels(nn.Module):
    """A network in the inference form, by torch's operators alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with patch.object(own, "own_kernels", lambda device: None):
            y: Tensor = self.net(x)
            return y


class Official(nn.Module):
    """The official implementation, imported from a checkout given by path; its last map is the answer."""

    def __init__(self, checkout: Path, model: BiRefNet) -> None:
        """
        Args:
            checkout: a clone of ZhengPeng7/BiRefNet, whose config.py names the model's backbone.
        """
        super().__init__()
        sys.path.insert(0, str(checkout))
        try:
            self.net: Any = importlib.import_module("models.birefnet").BiRefNet(bb_pretrained=False).eval()
        finally:
            sys.path.remove(str(checkout))
        self.net.load_state_dict(model.state_dict(), strict=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)[-1]
        return y
