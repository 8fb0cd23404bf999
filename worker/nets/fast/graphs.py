"""CUDA graphs: one recorded forward pass per batch size, replayed without a launch from Python.

A pass is about a thousand small launches, which at batch 1 take longer than the kernels. A recorded graph has fixed
addresses: inputs are copied to where it reads, and the answer is copied from where it writes before the next replay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from worker.nets.fast.own import told

log = structlog.get_logger(__name__)

#: Passes before recording: libraries pick their kernels and allocate workspaces, which a recording must not see.
_WARM_UP_PASSES = 3


@dataclass(frozen=True)
class Recording:
    """A recorded pass: write to `input`, call `replay`, read `output`."""

    input: Tensor
    output: Tensor
    replay: Callable[[], None]


@dataclass(frozen=True)
class _Pool:
    """One memory pool for all graphs of a device: one pass runs at a time, and nothing of it outlives its copy.

    A pool whose last graph is gone takes no other: recording into it fails, and leaves the random generator unusable.
    Models are loaded again and batch sizes given up, so a graph of one tiny operation is held with the pool.
    """

    handle: Any
    held: torch.cuda.CUDAGraph


@cache
def _pool(device: torch.device) -> _Pool:
    with torch.cuda.device(device):
        handle, graph = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=handle, capture_error_mode="thread_local"):
            torch.zeros(1, device=device)
        return _Pool(handle, graph)


@cache
def _warm_up_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace for each stream that it was ever called on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def record_cuda_graph(net: nn.Module, example: Tensor) -> Recording:
    """Record one pass of `net` on inputs like `example`, which lies on a CUDA device.

    Raises:
        RuntimeError: something in the pass cannot be recorded, or memory is short.
    """
    # A recording that cannot be ended leaves its own stream current (torch.cuda.graph), and later passes of this thread
    # would run beside the uploads that they read. The inner context gives the caller's stream back whatever happens.
    with torch.cuda.device(example.device), torch.cuda.stream(torch.cuda.current_stream(example.device)):
        given = example.clone()
        stream = _warm_up_stream(example.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_PASSES):
                net(given)
        torch.cuda.current_stream().wait_stream(stream)
        pool, graph = _pool(example.device).handle, torch.cuda.CUDAGraph()
        # Other threads compose pictures on this device meanwhile; their calls must not end the recording.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = net(given)
        return Recording(given, output, graph.replay)


class Graphed(nn.Module):
    """A network whose passes are recorded once per input shape and then replayed.

    A shape that cannot be recorded runs as usual from then on, with one warning. Not for several threads at once:
    the caller runs one pass at a time.
    """

    def __init__(self, net: nn.Module, record: Callable[[nn.Module, Tensor], Recording] = record_cuda_graph) -> None:
        super().__init__()
        self.net = net
        self._record = record
        self._recordings: dict[torch.Size, Recording | None] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape not in self._recordings:
            self._recordings[x.shape] = self._try_to_record(x)
        recording = self._recordings[x.shape]
        if recording is None:
            return self.net(x)
        recording.input.copy_(x)
        recording.replay()
        return recording.output.clone()

    def _try_to_record(self, x: Tensor) -> Recording | None:
        try:
            return self._record(self.net, x)
        except torch.OutOfMemoryError:
            raise  # the batch is too large with or without a graph; the caller halves it
        except RuntimeError as exc:
            log.warning("cuda_graph_failed", shape=list(x.shape), detail=told(exc))
            return None
