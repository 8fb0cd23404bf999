"""Training pictures drawn by many processes for one that trains, in shared memory; only numbers go through pipes.

The consumer is never kept waiting: it takes what has been drawn since it last asked, and `Reservoir` fills the rest of
a batch with pictures that it has seen before, each time mirrored and coloured anew.
"""

from __future__ import annotations

import mmap
import multiprocessing as mp
import queue
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.backgrounds import GROUNDS
from training.data import FAINT_SHARE, MEAN, STD, Assets, sample, squash_alpha, squash_picture, zoomed
from training.kinds import KINDS

Bytes = NDArray[np.uint8]
#: Pictures that are added to a reservoir between two batches, at most.
AT_ONCE = 400


def squashed(assets: Assets, seed: int, index: int, size: int, focus: bool = False) -> Bytes:
    """Sample number `index` as the network sees it: (S, S, 4) uint8, the picture's RGB and its alpha.

    Half of the samples have any kind of art, a third any kind of ground, all equally likely: the rare ones are the hard
    ones, and there is time for them here. Some are drawn smaller or larger than the network sees them (`ZOOMS`).

    Args:
        focus: the others have the shares of a run that works on what is hardest; of all some are faint or have borders.
    """
    rng = np.random.default_rng((seed, index, 1))
    kind = str(rng.choice(sorted(KINDS))) if rng.random() < 0.5 else None
    ground = str(rng.choice(sorted(GROUNDS))) if rng.random() < 0.35 else None
    if ground == "photo" and kind == "photo_cut":
        ground = None
    drawn = zoomed(rng, size)
    faint = focus and rng.random() < FAINT_SHARE
    pair = sample(assets, seed, index, drawn, kind, ground, focus, faint)
    return np.dstack((squash_picture(pair.image, size), squash_alpha(pair.alpha, size)))


class Supply:
    """Processes that draw the samples of a seed, each into a free place in shared memory.

    Start it before CUDA is used: the processes are forked, so that all share the art that has been read.
    """

    def __init__(
        self, assets: Assets, seed: int, size: int, largest: int, processes: int, places: int = 256, focus: bool = False
    ) -> None:
        """
        Args:
            size: side of the first pictures, pixels.
            largest: side of the largest that will be asked for.
            places: how many may lie ready.
            focus: as `squashed` has it.
        """
        context = mp.get_context("fork")
        cv2.setNumThreads(1)  # here: a forked process that changes it can wait for threads that only its parent has
        self._shape = (places, largest, largest, 4)
        # Shared by the fork, and only as large as what has been written to it.
        self._memory = mmap.mmap(-1, places * largest * largest * 4)
        self._size, self._next = context.Value("i", size), context.Value("q", 0)
        self._free: Any = context.Queue()
        self._ready: Any = context.Queue()
        # A process waits at its end for what lies in a queue to be written, which is more than a pipe holds.
        for numbers in (self._free, self._ready):
            numbers.cancel_join_thread()
        for place in range(places):
            self._free.put(place)
        arguments = (assets, seed, focus)
        self._processes = [context.Process(target=self._draw, args=arguments, daemon=True) for _ in range(processes)]
        for process in self._processes:
            process.start()

    @property
    def drawn(self) -> int:
        """How many samples have been begun."""
        return int(self._next.value)

    def resize(self, size: int) -> None:
        """Ask for another size from now on; pictures of the old one are dropped by `taken`."""
        self._size.value = size

    def taken(self, at_least: int = 0) -> Iterator[Bytes]:
        """The pictures that lie ready, (S, S, 4) uint8, each valid until the next is asked for.

        Args:
            at_least: wait for so many.
        Raises:
            RuntimeError: they are waited for and no process is left that draws.
        """
        found = 0
        while True:
            try:
                place, size = self._ready.get(timeout=5) if found < at_least else self._ready.get_nowait()
            except queue.Empty:
                if found >= at_least:
                    return
                if not any(process.is_alive() for process in self._processes):
                    raise RuntimeError("the processes that draw training pictures have ended") from None
                continue
            try:
                if size == self._size.value:
                    found += 1
                    yield self._picture(place, size)
            finally:
                self._free.put(place)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def _picture(self, place: int, size: int) -> Bytes:
        places = np.frombuffer(self._memory, np.uint8).reshape(self._shape[0], -1)
        return places[place, : size * size * 4].reshape(size, size, 4)

    def _draw(self, assets: Assets, seed: int, focus: bool) -> None:
        while True:
            place = self._free.get()
            with self._next.get_lock():
                index = self._next.value
                self._next.value += 1
            size = self._size.value
            self._picture(place, size)[:] = squashed(assets, seed, index, size, focus)
            self._ready.put((place, size))


class Reservoir:
    """The last pictures of a supply on a device, and batches of them: new ones first, the rest seen before."""

    def __init__(self, capacity: int, size: int, device: torch.device, seed: int = 0) -> None:
        """
        Args:
            capacity: how many pictures are kept; the oldest go first.
            size: their side, pixels.
        """
        self.pictures = torch.empty((capacity, 4, size, size), dtype=torch.uint8, device=device)
        self.count, self._unseen = 0, 0
        self._rng = np.random.default_rng(seed)
        # Copies have a stream of their own: in the training's they would wait for all that lies before them.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._statistics = [torch.from_numpy(x).to(device).view(1, 3, 1, 1) for x in (MEAN, STD)]

    def add(self, picture: Bytes) -> None:
        """Keep a picture, (S, S, 4) uint8."""
        place = self.count % len(self.pictures)
        with torch.cuda.stream(self._stream):
            self.pictures[place] = torch.from_numpy(picture.copy()).to(self.pictures.device).permute(2, 0, 1)
        self.count += 1
        self._unseen = min(self._unseen + 1, len(self.pictures))

    def batch(self, count: int, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) float32, normalised and varied, and their alphas (B, 1, S, S) float32, 0..1.

        Args:
            size: S, if they shall be smaller than they are kept.
        """
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        # The oldest may be overwritten while this batch is on its way, once all places are taken.
        safe = len(self.pictures) - min(AT_ONCE, len(self.pictures) // 4)
        kept = min(self.count, safe)
        new = min(self._unseen, count)
        places = [(self.count - self._unseen + i) % len(self.pictures) for i in range(new)]
        self._unseen -= new
        places += [
            (self.count - 1 - int(back)) % len(self.pictures) for back in self._rng.integers(0, kept, count - new)
        ]
        chosen = self.pictures[torch.tensor(places, device=self.pictures.device)].float() / 255
        if size is not None and size != chosen.shape[2]:
            chosen = F.interpolate(chosen, size=(size, size), mode="bilinear", antialias=True)
        return self._varied(chosen)

    def _varied(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Mirrored (half of them), with colour channels exchanged (a third), brighter or darker; alpha as it was."""
        count, device = len(chosen), chosen.device
        mirrored = torch.from_numpy(self._rng.random(count) < 0.5).to(device).view(-1, 1, 1, 1)
        chosen = torch.where(mirrored, chosen.flip(3), chosen)
        image, alpha = chosen[:, :3], chosen[:, 3:].contiguous()
        exchanged = self._rng.random(count) < 0.33
        orders = np.stack([self._rng.permutation(3) if yes else np.arange(3) for yes in exchanged])
        image = image.gather(1, torch.from_numpy(orders).to(device).view(count, 3, 1, 1).expand_as(image))
        gamma = torch.from_numpy(np.exp(self._rng.normal(0, 0.15, (count, 1, 1, 1))).astype(np.float32)).to(device)
        gain = torch.from_numpy(self._rng.uniform(0.92, 1.04, (count, 3, 1, 1)).astype(np.float32)).to(device)
        image = (image.clamp(1e-4, 1) ** gamma * gain).clamp(0, 1)
        mean, std = self._statistics
        return (image - mean) / std, alpha
