"""One cell: a prepared side through one model, to the files that the job's options ask for."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from shared.errors import InvalidRequest, OutputNotWritten
from shared.jobs import CellRecord, CellStatus, Job, cell_name
from shared.options import JobOptions, PrintOptions, parse_canvas
from shared.storage import FolderStorage
from worker.affinity import one_at_a_time
from worker.device import DeviceQueue, MaskEngine
from worker.images import Picture, cut_out, encode_png, network_input
from worker.images.detail import full_mask
from worker.images.holes import punch_holes
from worker.images.own_alpha import is_cut_out
from worker.images.preflight import preflight
from worker.images.print_spec import PrintSpec
from worker.images.printing import PrintResult, render_print
from worker.images.proofs import encode_webp, flatten, mask_of, proof, shrink, thumbnail
from worker.output_limits import check_output, print_pixels
from worker.pictures import PreparedSides

log = structlog.get_logger(__name__)

#: Longest side of the copies that the models of a side are compared on, in pixels.
_OPINION_SIDE = 512
#: Longest side of proofs, in pixels.
PROOF_SIDE = 640
_PROOF_GROUNDS = ("black", "white", "heather")
#: Quality of proofs (lossy WebP, 0-100); results in WebP are lossless.
_PROOF_QUALITY = 85

Pixels = npt.NDArray[np.uint8]


class LoadedEngine(MaskEngine, Protocol):
    """What a cell needs to know of an engine."""

    input_size: int
    dtype: torch.dtype

    @property
    def weights_id(self) -> str: ...


def options_of(job: Job) -> JobOptions:
    """The job's options, as the API has checked them."""
    return parse_options(json.dumps(job.options))


@lru_cache(maxsize=256)
def parse_options(options: str) -> JobOptions:
    """Options from JSON; parsed once for all who ask, which is some ten times in the course of a job."""
    return JobOptions.model_validate(json.loads(options))


class CellMaker:
    """Computes cells; shared by all threads of a worker."""

    def __init__(
        self,
        storage: FolderStorage,
        prepared: PreparedSides,
        engines: Mapping[str, LoadedEngine],
        device: DeviceQueue,
    ) -> None:
        self._storage = storage
        self._prepared = prepared
        self._engines = engines
        self._device = device

    def make(self, job: Job, side: str, model: str, raise_if_ended: Callable[[], None]) -> CellRecord:
        """Compute one cell and write its files.

        Args:
            raise_if_ended: called each time a cell that had to wait gets the device; what it raises ends the cell.
        Raises:
            InvalidRequest: the worker has no such model (any more): MODELS was changed while the job waited.
            OutputTooLarge: the options ask for a file that cannot be made of this picture.
            AppError: of inference, or of writing.
        """
        if model not in self._engines:
            raise InvalidRequest(f"{model} is not one of this worker's models any more: {', '.join(self._engines)}")
        started = time.perf_counter()
        times: dict[str, float] = {}
        options = options_of(job)
        # Waiting cells hold neither pixels nor room for them.
        size = self._prepared.size(job.job_id, side)
        check_output(size, options)
        pixels = size.width * size.height + print_pixels(size, options.print)
        with self._prepared.open(job.job_id, side, pixels) as picture:
            times["decode_s"] = round(time.perf_counter() - started, 4)  # and the wait for room in the budget
            record = self._make(job, side, model, picture, options, times, raise_if_ended)
        record.seconds = round(time.perf_counter() - started, 3)
        log.info(
            "cell_done",
            cell=cell_name(side, model),
            seconds=record.seconds,
            bytes=record.bytes,
            own_alpha=record.own_alpha,
            **times,
        )
        return record

    def _make(
        self,
        job: Job,
        side: str,
        model: str,
        picture: Picture,
        options: JobOptions,
        times: dict[str, float],
        raise_if_ended: Callable[[], None],
    ) -> CellRecord:
        def network_pass(part: Picture) -> Tensor:
            with _timed(times, "input"):
                x = self._input(job.job_id, side, model, picture, part)
            with _timed(times, "infer"):
                return self._device.mask(model, x, raise_if_ended)

        own_alpha = options.own_alpha == "trust" and is_cut_out(picture.alpha)
        with torch.inference_mode():
            if own_alpha:
                raise_if_ended()  # the device is not needed, but an ended job needs no files either
                mask = torch.ones(picture.height, picture.width, device=self._engines[model].device)
            else:
                mask = full_mask(picture, network_pass, detail=options.detail == "high")
                if options.holes == "auto":
                    with _timed(times, "holes"):
                        mask = torch.from_numpy(punch_holes(picture, mask.cpu().numpy()).mask).to(mask.device)
            with _timed(times, "compose"), one_at_a_time(mask.numel()):
                cutout = cut_out(picture, mask, clean=options.edges == "clean")
        del mask
        with _timed(times, "write"):
            name = self.output_name(job, side, model, options)
            size = self._storage.write_atomic(name, _main_file(cutout, picture, options))
        record = CellRecord(
            status=CellStatus.SUCCEEDED,
            url=self._storage.url(name),
            width=picture.width,
            height=picture.height,
            bytes=size,
            own_alpha=own_alpha,
        )
        planned: dict[str, Any] = {}  # what preflight may know of the print
        if options.print is not None:
            with _timed(times, "print"):
                effective_dpi = self._print(job, side, model, cutout, options.print, record)
            planned = {"print_dpi": effective_dpi, "print_alpha": options.print.alpha}
        with _timed(times, "inspect"):
            with one_at_a_time(cutout.shape[0] * cutout.shape[1]):
                report = preflight(cutout, dpi=picture.dpi, source_alpha=picture.alpha is not None, **planned)
            record.preflight = dict(report)
            self._keep_for_opinion(job, side, model, cutout)
        if options.proofs or options.proof_background:
            with _timed(times, "proofs"):
                self._proofs(job, side, model, cutout, options, record)
        return record

    def output_name(self, job: Job, side: str, model: str, options: JobOptions) -> str:
        """Name of a cell's main file."""
        return self._storage.output_name(job.id, job.job_id, side, model, options.format)

    def _input(self, job_id: str, side: str, model: str, picture: Picture, part: Picture) -> Tensor:
        """The network's input; that of the whole picture is made once for all models that take the same."""
        engine = self._engines[model]
        if part is not picture:
            return network_input(part, engine.input_size, engine.device, engine.dtype)
        return self._prepared.derived(
            job_id,
            side,
            f"{engine.input_size}-{engine.dtype}",
            lambda: network_input(picture, engine.input_size, engine.device, engine.dtype),
        )

    def _write(self, job: Job, side: str, model: str, suffix: str, ext: str, data: Any) -> str:
        name = self._storage.output_name(job.id, job.job_id, side, f"{model}_{suffix}", ext)
        self._storage.write_atomic(name, data)
        return self._storage.url(name)

    def _keep_for_opinion(self, job: Job, side: str, model: str, cutout: Pixels) -> None:
        """A small alpha for comparing the models when all cells are done."""
        height, width = cutout.shape[:2]
        scale = min(1.0, _OPINION_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(np.ascontiguousarray(cutout[..., 3]), size, interpolation=cv2.INTER_AREA)
        self._keep(job, f"{cell_name(side, model)}-alpha", np.asarray(small, np.uint8))

    def _keep(self, job: Job, name: str, array: Pixels) -> None:
        """A small copy for the end of the job. A disk that takes no more costs the comparison, not the cutout."""
        try:
            self._prepared.save_array(job.job_id, name, array)
        except OutputNotWritten as exc:
            log.warning("copy_not_kept", name=name, detail=exc.message)

    def _print(
        self, job: Job, side: str, model: str, cutout: Pixels, options: PrintOptions, record: CellRecord
    ) -> float:
        """Write the print files and their report; returns the cutout's pixels per printed inch."""
        spec = print_spec(options)
        result = render_print(cutout, spec)
        dpi = (float(spec.dpi), float(spec.dpi))
        record.files["print"] = self._write(job, side, model, "print", "png", encode_png(result.image, dpi))
        if result.underbase is not None:
            record.files["underbase"] = self._write(
                job, side, model, "underbase", "png", encode_png(result.underbase, dpi)
            )
        record.print = print_report(result)
        return result.effective_dpi

    def _proofs(self, job: Job, side: str, model: str, cutout: Pixels, options: JobOptions, record: CellRecord) -> None:
        small = shrink(cutout, PROOF_SIDE)
        grounds = {name: name for name in _PROOF_GROUNDS} if options.proofs else {}
        if options.proof_background is not None:
            grounds["colour"] = options.proof_background
        for name, ground in grounds.items():
            data = encode_webp(proof(small, ground, long_side=PROOF_SIDE), _PROOF_QUALITY)
            record.files[f"proof_{name}"] = self._write(job, side, model, f"proof_{name}", "webp", data)
        data = encode_webp(thumbnail(small), _PROOF_QUALITY)
        record.files["thumbnail"] = self._write(job, side, model, "thumbnail", "webp", data)
        self._keep(job, f"{cell_name(side, model)}-small", small)


def print_spec(options: PrintOptions) -> PrintSpec:
    """What the client asks of print files, as the renderer wants it."""
    fields = options.model_dump(exclude={"canvas"})
    return PrintSpec(canvas=parse_canvas(options.canvas), **fields)


def print_report(result: PrintResult) -> dict[str, Any]:
    """What happened to the art on its way to the canvas; enlargement is never silent."""
    box = None
    if result.box is not None:
        left, top, width, height = result.box
        box = [left, top, left + width, top + height]  # as every box of a reply
    return {
        "width": int(result.image.shape[1]),
        "height": int(result.image.shape[0]),
        "scale": round(result.scale, 4),
        "upscaled": result.upscaled,
        "limited": result.limited,
        "box": box,
        "effective_dpi": round(result.effective_dpi, 1),
        "removed_islands": result.removed_islands,
        "removed_pixels": result.removed_pixels,
    }


def _main_file(cutout: Pixels, picture: Picture, options: JobOptions) -> Any:
    """The bytes of the main result, as a whole or in parts."""
    pixels = cutout
    if options.output == "mask":
        pixels = mask_of(cutout)
    elif options.background is not None:
        pixels = flatten(cutout, options.background)
    return encode_png(pixels, picture.dpi) if options.format == "png" else encode_webp(pixels, quality=None)


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to `times` under `{name}_s`."""
    started = time.perf_counter()
    yield
    times[f"{name}_s"] = round(times.get(f"{name}_s", 0.0) + time.perf_counter() - started, 4)
