"""Cells through the real code, decode to files, with an engine that paints its mask: every option, odd pictures."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from shared.errors import JobCanceled, OutputTooLarge
from shared.jobs import CellRecord, Job, Source, cell_name, new_job, new_job_id
from shared.options import JobOptions
from shared.storage import FolderStorage
from worker.batcher import BatchLimits
from worker.budget import PixelBudget
from worker.cells import CellMaker
from worker.device import DeviceQueue
from worker.images.sheet import SheetRow, _verdict, contact_sheet
from worker.pictures import PreparedSides
from worker.review import Reviewer

Array = np.ndarray[Any, Any]


class PaintedMasks:
    """An engine whose mask is one of a few shapes, whatever it is shown."""

    def __init__(self, kind: str) -> None:
        self.name, self.input_size = kind, 32
        self.device, self.dtype, self.weights_id = torch.device("cpu"), torch.float32, kind
        self.passes = 0
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        self._mask = {
            "disc": ((10 - torch.hypot(x - 16, y - 16)) / 4 + 0.5).clamp(0, 1),
            "nothing": torch.zeros(32, 32),
            "all": torch.ones(32, 32),
        }[kind]

    def masks(self, batch: Tensor) -> Tensor:
        self.passes += 1
        return self._mask.repeat(len(batch), 1, 1)


class Bench:
    """Everything a cell needs, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.storage = FolderStorage(folder / "outputs", "http://x.test")
        budget = PixelBudget(500_000_000)
        self.prepared = PreparedSides(self.storage, budget, pixel_limit=64_000_000, cache_bytes=50_000_000)
        self.engines = {kind: PaintedMasks(kind) for kind in ("disc", "nothing", "all")}
        self.device = DeviceQueue(self.engines, BatchLimits(max_batch=1, max_wait_s=0, max_waiting=8))
        self._cells = CellMaker(self.storage, self.prepared, self.engines, self.device)
        self._reviewer = Reviewer(self.storage, self.prepared)

    def run(
        self, data: bytes, options: dict[str, Any], models: tuple[str, ...] = ("disc",), *, ended: bool = False
    ) -> Job:
        """A job of one side with its cells computed and its review in `result`; `ended`, its cells find it canceled."""

        def raise_if_ended() -> None:
            if ended:
                raise JobCanceled("the job is over")

        source: dict[Any, Source] = {"front": Source(kind="file", path="unused")}
        job = new_job(job_id=new_job_id(), client_id=1, sources=source, models=models, options=options)
        self.prepared.save(job.job_id, "front", data)
        for model in models:
            job.cells[cell_name("front", model)] = self._cells.make(job, "front", model, raise_if_ended)
        job.result = self._reviewer.review(job)
        return job

    def cell(self, data: bytes, **options: Any) -> CellRecord:
        return self.run(data, options).cells["front_disc"]

    def open(self, url: str | None) -> Image.Image:
        assert url is not None
        image = Image.open(self.storage.path(url.rpartition("/")[2]))
        image.load()
        return image


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with torch.inference_mode():
        bench = Bench(tmp_path_factory.mktemp("cells"))
        with bench.device:
            yield bench


def png(pixels: Array, **info: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1, **info)
    return file.getvalue()


def art(width: int, height: int, channels: int = 3) -> Array:
    """A red block on white, or with an alpha of its own, hidden colours under alpha 0 included."""
    pixels = np.full((height, width, channels), 255, np.uint8)
    pixels[height // 4 : 3 * height // 4 + 1, width // 4 : 3 * width // 4 + 1, :3] = (200, 30, 60)
    if channels == 4:
        pixels[..., 3] = np.random.default_rng(0).integers(0, 256, (height, width))
        pixels[: height // 3, :, 3] = 0
    return pixels


def sheets_seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, SheetRow]]:
    """What every contact sheet from now on is made of."""
    rows: list[dict[str, SheetRow]] = []

    def seen(found: dict[str, SheetRow]) -> Array:
        rows.append(found)
        return contact_sheet(found)

    monkeypatch.setattr("worker.review.contact_sheet", seen)
    return rows


_PRINT = st.fixed_dictionaries(
    {
        "canvas": st.one_of(
            st.just("trim"), st.builds("{}x{}".format, st.integers(1, 120), st.integers(1, 120)), st.just("1x5400")
        )
    },
    optional={
        "dpi": st.integers(30, 2400),
        "position": st.sampled_from(["center", "top-left", "bottom-right"]),
        "scale": st.one_of(st.sampled_from(["fit", "none"]), st.floats(0.01, 1)),
        "margin_px": st.integers(0, 50),
        "allow_upscale": st.booleans(),
        "alpha": st.sampled_from(["soft", "hard", "halftone"]),
        "threshold": st.floats(0.01, 0.99),
        "choke_px": st.none() | st.floats(0, 10),
        "halftone_lpi": st.floats(10, 100),
        "underbase": st.booleans(),
    },
)
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "edges": st.sampled_from(["clean", "raw"]),
        "holes": st.sampled_from(["keep", "auto"]),
        "own_alpha": st.sampled_from(["trust", "cut"]),
        "detail": st.sampled_from(["normal", "high"]),
        "output": st.sampled_from(["cutout", "mask"]),
        "format": st.sampled_from(["png", "webp"]),
        "background": st.just("#20c0ff"),
        "proofs": st.booleans(),
        "proof_background": st.just("#102030"),
        "print": _PRINT,
    },
)
_SIZES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([(1, 1), (1, 5400), (5400, 1), (2, 700)])
)


class TestEveryOption:
    @given(_SIZES, st.sampled_from([3, 4]), _OPTIONS)
    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_picture_and_any_options_give_whole_files(
        self, bench: Bench, size: tuple[int, int], channels: int, fields: dict[str, Any]
    ) -> None:
        try:
            options = JobOptions.model_validate(fields)
        except ValidationError:
            return
        source = art(*size, channels)
        job = bench.run(png(source), fields, models=("disc", "nothing", "all"))
        assert json.dumps(job.result, allow_nan=False)
        for cell in job.cells.values():
            main = bench.open(cell.url)
            assert main.size == (cell.width, cell.height) == size
            assert main.format == options.format.upper()
            if options.output == "mask" or options.background is None:
                alpha = np.asarray(main.convert("L") if options.output == "mask" else main.convert("RGBA"))
                alpha = alpha if alpha.ndim == 2 else alpha[..., 3]
                assert channels == 3 or (alpha <= source[..., 3]).all()
            assert ("print" in cell.files) == (options.print is not None)
            assert ("underbase" in cell.files) == (options.print is not None and options.print.underbase)
            assert ("proof_black" in cell.files) == options.proofs
            assert ("proof_colour" in cell.files) == (options.proof_background is not None)
            for name, url in cell.files.items():
                image = bench.open(url)
                if name in ("print", "underbase"):
                    assert cell.print is not None
                    assert image.size == (cell.print["width"], cell.print["height"])
                else:
                    assert max(image.size) <= 640
            assert cell.preflight is not None
        assert job.result is not None
        assert set(job.result["sides"]) == {"front"}

    @pytest.mark.slow
    def test_the_largest_usual_canvas_goes_through_all_of_it(self, bench: Bench) -> None:
        """5400x5400 in and out, with everything at once."""
        wanted = {"alpha": "halftone", "canvas": "5400x5400", "underbase": True, "margin_px": 150}
        data = png(art(5400, 5400), dpi=(300, 300))
        cell = bench.cell(data, holes="auto", detail="high", proofs=True, print=wanted)
        main, printed = bench.open(cell.url), bench.open(cell.files["print"])
        assert main.size == printed.size == bench.open(cell.files["underbase"]).size == (5400, 5400)
        assert printed.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert set(np.unique(np.asarray(printed)[..., 3])) <= {0, 255}


class TestOwnAlpha:
    @staticmethod
    def star() -> Array:
        """A crisp star that was cut out before, on hidden white."""
        y, x = np.mgrid[0:200, 0:160] - np.array([100, 80])[:, None, None]
        inside = np.hypot(x, y) < 35 + 25 * np.cos(5 * np.arctan2(y, x))
        pixels = np.full((200, 160, 4), 255, np.uint8)
        pixels[inside] = (10, 90, 200, 255)
        pixels[~inside, 3] = 0
        return pixels

    def test_finished_artwork_comes_back_as_it_was(self, bench: Bench) -> None:
        before = bench.engines["disc"].passes
        cell = bench.cell(png(self.star()))
        out = np.asarray(bench.open(cell.url))
        assert cell.own_alpha
        assert (out[..., 3] == self.star()[..., 3]).all()
        assert (out[out[..., 3] > 0] == (10, 90, 200, 255)).all()
        assert not out[out[..., 3] == 0].any()
        assert bench.engines["disc"].passes == before

    def test_the_reply_says_that_no_model_was_run(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = sheets_seen(monkeypatch)
        job = bench.run(png(self.star()), {"proofs": True}, models=("disc", "all"))
        assert [cell.own_alpha for cell in job.cells.values()] == [True, True]
        assert job.result is not None
        opinion = job.result["sides"]["front"]
        assert opinion["agreement"] is None
        assert "no model was run, so disc and all are the same picture" in opinion["reason"]
        assert _verdict(rows[0]["front"])[0] == opinion["reason"]

    def test_cells_that_a_model_cut_do_not_claim_it(self, bench: Bench) -> None:
        job = bench.run(png(self.star()), {"own_alpha": "cut"}, models=("disc", "all"))
        assert not any(cell.own_alpha for cell in job.cells.values())
        assert job.result is not None
        assert job.result["sides"]["front"]["agreement"] is not None

    def test_a_job_that_has_ended_gets_no_files_of_it(self, bench: Bench) -> None:
        with pytest.raises(JobCanceled):
            bench.run(png(self.star()), {}, ended=True)

    def test_the_models_cut_it_when_asked_to(self, bench: Bench) -> None:
        out = np.asarray(bench.open(bench.cell(png(self.star()), own_alpha="cut").url))
        assert (out[..., 3] < self.star()[..., 3]).any()
        assert (out[..., 3] <= self.star()[..., 3]).all()

    def test_a_photograph_with_clear_margins_is_still_cut(self, bench: Bench) -> None:
        pixels = np.full((200, 160, 4), 255, np.uint8)
        pixels[..., 3] = 0
        pixels[20:180, 20:140, 3] = 255
        cell = bench.cell(png(pixels))
        out = np.asarray(bench.open(cell.url))
        assert not cell.own_alpha
        assert out[100, 80, 3] == 255
        assert out[25, 25, 3] == 0


class TestLimits:
    def test_a_picture_too_long_for_webp_is_refused_by_name(self, bench: Bench) -> None:
        data = png(np.zeros((2, 16_384, 3), np.uint8))
        with pytest.raises(OutputTooLarge, match=r"at most 16383 pixels a side, the picture 16384x2.*png"):
            bench.cell(data, format="webp")
        assert bench.cell(data).width == 16_384

    def test_margins_that_make_more_than_the_largest_canvas_are_refused_by_name(self, bench: Bench) -> None:
        data = png(np.zeros((2000, 2500), np.uint8))
        with pytest.raises(
            OutputTooLarge, match=r"2500x2000 with margin_px 3000 makes a print of 68 megapixels; .* 64"
        ):
            bench.cell(data, print={"canvas": "trim", "margin_px": 3000})


class TestReports:
    def test_preflight_judges_the_resolution_of_the_print_that_is_made(self, bench: Bench) -> None:
        """Art enlarged fourfold onto a canvas of 300 dpi has 75 pixels an inch."""
        wanted = {"canvas": "400x480", "allow_upscale": True, "scale": "fit"}
        cell = bench.cell(png(art(100, 120)), print=wanted)
        assert cell.print is not None
        assert cell.preflight is not None
        resolution = next(check for check in cell.preflight["checks"] if check["name"] == "resolution")
        assert resolution["value"] == pytest.approx(cell.print["effective_dpi"], abs=0.1)
        assert resolution["level"] == "fail"
        assert cell.preflight["print"]["width_assumed"] is False

    def test_the_box_of_a_print_has_the_corners_of_the_art_on_the_canvas(self, bench: Bench) -> None:
        """left, top, right, bottom, as every box of a reply."""
        cell = bench.cell(png(art(100, 120)), print={"canvas": "400x300", "position": "bottom-right", "margin_px": 7})
        assert cell.print is not None
        assert tuple(cell.print["box"]) == bench.open(cell.files["print"]).getchannel("A").getbbox()

    def test_the_contact_sheet_tells_the_level_of_every_preflight(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = sheets_seen(monkeypatch)
        job = bench.run(png(art(100, 120)), {"proofs": True}, models=("disc", "all"))
        reports = {model: job.cells[f"front_{model}"].preflight for model in ("disc", "all")}
        assert rows[0]["front"].levels == {model: report and report["level"] for model, report in reports.items()}
