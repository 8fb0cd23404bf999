"""CUDA graphs: one recorded forward pass per batch size, replayed without a launch from Python.

A pass is about a thousand small launches, which at batch 1 take longer than the kernels. A recorded graph has fixed
addresses: inputs are copied to where it reads, and the answer is copied from where it writes before the next replay.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast
from weakref import WeakSet

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

    The passes before a recording take their memory there too, on the same stream, so that a device holds the values of
    one pass and not of two. A pool whose last graph is gone takes no other: recording into it fails, and leaves the
    random generator unusable. Models are loaded again and batch sizes given up, so a graph of one tiny operation is
    held with the pool.
    """

    held: torch.cuda.CUDAGraph  # first, so that it is gone before the pool when both go
    memory: torch.cuda.MemPool
    stream: torch.cuda.Stream


#: All that record, so that a device that is full can be given back everything.
_recording_networks: "WeakSet[Graphed]" = WeakSet()


def forget_recordings() -> None:
    """Give up all recordings, and with the last one their memory, which nothing else can have; passes record anew."""
    for graphed in list(_recording_networks):
        graphed.forget()
    _pool.cache_clear()
    gc.collect()  # the pool's memory can be had once it and its graphs are gone


def _recording(graph: torch.cuda.CUDAGraph, memory: torch.cuda.MemPool, stream: torch.cuda.Stream) -> torch.cuda.graph:
    # torch's name for a pool's handle is a type of its own, of which a pool's is not told to be.
    handle = cast(Any, memory.id)
    # Other threads compose pictures on this device meanwhile; their calls must not end the recording.
    return torch.cuda.graph(graph, pool=handle, stream=stream, capture_error_mode="thread_local")


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings, also of later pools: a pool's blocks belong to the stream that asked for them, and cuBLAS
    keeps a workspace for each stream that it was ever called on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@cache
def _pool(device: torch.device) -> _Pool:
    with torch.cuda.device(device):
        memory, stream, graph = torch.cuda.MemPool(), _stream(device), torch.cuda.CUDAGraph()
        with _recording(graph, memory, stream):
            torch.zeros(1, device=device)
        return _Pool(graph, memory, stream)


def rehomed(net: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Move the buffers that a pass has made to memory of their own.

    Args:
        before: the network's buffers without them, by name.
    """
    for name, buffer in list(net.named_buffers()):
        if name not in before:
            owner, _, short = name.rpartition(".")
            net.get_submodule(owner).register_buffer(short, buffer.clone(), persistent=False)


def record_cuda_graph(net: nn.Module, example: Tensor) -> Recording:
    """Record one pass of `net` on inputs like `example`, which lies on a CUDA device.

    What a pass keeps for later ones must be a buffer of the network: replays write wherever the pool had room when they
    were recorded, and so over anything else that has been given room there since. A network that keeps more has a
    method `prepare` that takes the example and makes it before.

    Raises:
        RuntimeError: something in the pass cannot be recorded, or memory is short.
    """
    # A recording that cannot be ended leaves its own stream current (torch.cuda.graph), and later passes of this thread
    # would run beside the uploads that they read. The inner context gives the caller's stream back whatever happens.
    with torch.cuda.device(example.device), torch.cuda.stream(torch.cuda.current_stream(example.device)):
        given = example.clone()
        prepare = getattr(net, "prepare", None)
        if prepare is not None:
            prepare(given)
        torch.cuda.empty_cache()  # what lies unused beside the pool is not given to it when memory runs short
        pool, graph = _pool(example.device), torch.cuda.CUDAGraph()
        pool.stream.wait_stream(torch.cuda.current_stream())
        before = dict(net.named_buffers())
        try:
            with torch.cuda.stream(pool.stream), torch.cuda.use_mem_pool(pool.memory):
                for _ in range(_WARM_UP_PASSES):
                    net(given)
        finally:
            torch.cuda.current_stream().wait_stream(pool.stream)
            rehomed(net, before)
        with _recording(graph, pool.memory, pool.stream):
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
        _recording_networks.add(self)

    def forget(self) -> None:
        """Give up what is recorded; what cannot be recorded stays known."""
        self._recordings = {shape: None for shape, recording in self._recordings.items() if recording is None}

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
