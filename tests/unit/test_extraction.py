"""What a worker does about a side's design: when it asks, what it keeps, and that nothing is paid for twice."""

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks.mockups import load_designs, mockup
from shared.errors import (
    ExtractionError,
    ExtractionNotConfigured,
    FatalError,
    JobCanceled,
    OutputNotWritten,
    SourceNotAnImage,
    StoreUnavailable,
)
from shared.jobs import ExtractionReport, Job, JobStatus, Source, new_job, new_job_id
from shared.settings import Settings, load_settings
from shared.storage import FolderStorage
from shared.store import EXTRACTION_MARK, Store
from tests import gemini_server as server
from tests.conftest import eventually
from tests.gemini_server import KEY, GeminiServer, jpeg
from tests.picture_files import bomb_png
from tests.redis_server import RedisServer
from worker.answers import Answer, Answers, question_key
from worker.budget import PixelBudget
from worker.extraction import Extractor, Prepared
from worker.images import decode
from worker.pictures import PreparedSides
from worker.retention import Retention

ROOT = Path(__file__).parents[2]
PHOTO = jpeg(120, 80)


class Side:
    """One front of one job, with an extractor of its own settings."""

    def __init__(
        self, settings: Settings, store: Store, options: dict[str, str] | None = None, caller: str = ""
    ) -> None:
        self.settings, self.store = settings, store
        self.storage = FolderStorage(settings.outputs_dir, settings.base_url)
        self.budget = PixelBudget(10**8)
        self.extractor = Extractor(settings, store, self.storage, self.budget)
        job = new_job(
            job_id=new_job_id(),
            client_id=7,
            sources={"front": Source(kind="url", url="https://example.com/x")},
            models=("rmbg",),
            options={"extract": "always"} if options is None else options,
            caller=caller,
        )
        store.create(job)
        self.job_id = job.job_id

    @property
    def job(self) -> Job:
        return self.store.get(self.job_id)

    @property
    def report(self) -> ExtractionReport:
        return self.job.extraction["front"]

    def prepare(self, data: bytes = PHOTO) -> Prepared:
        """As the pipeline does: a report that comes back is recorded, without another word to Redis before."""
        prepared = self.extractor.prepare(self.job, "front", data, self.raise_if_ended)
        if prepared.report is not None:
            assert "front" not in self.job.extraction
            self.store.set_mark(self.job_id, f"{EXTRACTION_MARK}front", prepared.report.model_dump_json())
        return prepared

    def raise_if_ended(self) -> None:
        if self.job.is_final:
            raise JobCanceled("the job is canceled")


MakeSide = Callable[..., Side]


@pytest.fixture
def side(settings: Settings, store: Store, remote: GeminiServer) -> MakeSide:
    def made(options: dict[str, str] | None = None, caller: str = "", **own: object) -> Side:
        values = settings.model_dump() | {
            "gemini_api_key": KEY,
            "gemini_base_url": remote.url,
            "gemini_tries": 1,
            **own,
        }
        return Side(Settings(**values), store, options, caller)

    return made


class TestWhenToAsk:
    def test_a_photograph_of_a_print_is_extracted_and_everything_else_is_not(
        self, side: MakeSide, remote: GeminiServer
    ) -> None:
        design = load_designs()[15]
        photo = mockup(design, 3, "plain")
        file = io.BytesIO()
        Image.fromarray(np.dstack((design.rgb, (design.alpha * 255).astype(np.uint8)))).save(file, "PNG")
        for data, status, reason in (
            (photo, "extracted", "photo"),
            (jpeg(), "skipped", "flat_artwork"),
            (file.getvalue(), "skipped", "cutout"),
        ):
            asked = side({})
            asked.prepare(data)
            assert (asked.report.status, asked.report.reason) == (status, reason)
        assert len(remote.requests) == 1

    def test_a_job_may_insist_or_forbid(self, side: MakeSide, remote: GeminiServer) -> None:
        asked = side({"extract": "always"}, extract_design="never")
        asked.prepare()
        assert asked.report.reason == "asked"
        forbidden = side({"extract": "never"}, extract_design="always")
        assert forbidden.prepare().data == PHOTO
        assert (forbidden.report.status, forbidden.report.reason) == ("skipped", "not_asked")
        assert len(remote.requests) == 1

    @pytest.mark.parametrize(("default", "status"), [("always", "extracted"), ("never", "skipped")])
    def test_the_setting_decides_when_the_job_does_not(self, side: MakeSide, default: str, status: str) -> None:
        asked = side({}, extract_design=default)
        asked.prepare()
        assert asked.report.status == status

    def test_without_a_key_nothing_is_extracted(self, side: MakeSide, remote: GeminiServer) -> None:
        asked = side({}, gemini_api_key="")
        assert asked.prepare().data == PHOTO
        assert asked.report.reason == "not_configured"
        assert remote.connections == 0

    def test_without_a_key_a_job_that_insists_fails_whatever_the_setting(self, side: MakeSide) -> None:
        asked = side(gemini_api_key="", extract_on_error="original")
        with pytest.raises(ExtractionNotConfigured):
            asked.prepare()
        assert asked.report.reason == "extraction_not_configured"

    def test_a_worker_that_must_always_extract_does_not_start_without_a_key(self, side: MakeSide) -> None:
        with pytest.raises(FatalError, match="EXTRACT_DESIGN=always needs GEMINI_API_KEY"):
            side(gemini_api_key="", extract_design="always")

    def test_what_is_not_sent_does_not_even_load_the_sdk(self, settings: Settings, remote: GeminiServer) -> None:
        script = """
import sys
from tests.gemini_server import jpeg
from shared.jobs import Source, new_job, new_job_id
from shared.settings import load_settings
from shared.storage import FolderStorage
from shared.store import EXTRACTION_MARK, Store
from worker.budget import PixelBudget
from worker.extraction import Extractor
import worker.app, worker.tasks
PHOTO = jpeg(300, 200)
settings = load_settings()
store = Store.from_settings(settings)
extractor = Extractor(settings, store, FolderStorage(settings.outputs_dir, "http://x.test"), PixelBudget(10**8))
def job(options):
    made = new_job(job_id=new_job_id(), client_id=1, sources={"front": Source(kind="url", url="http://x")},
                   models=("rmbg",), options=options)
    store.create(made)
    return made
extractor.prepare(job({"extract": "never"}), "front", PHOTO, lambda: None)
extractor.prepare(job({}), "front", PHOTO, lambda: None)  # flat artwork
loaded = [name for name in sys.modules if name.split(".")[0] in ("google", "httpx2", "httpcore2", "websockets")]
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""
        env = os.environ | {
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "OUTPUTS_DIR": str(settings.outputs_dir),
            "GEMINI_API_KEY": KEY,
            "GEMINI_BASE_URL": remote.url,
        }
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert remote.connections == 0


class TestWhatGoesOut:
    def test_only_pixels_leave_no_place_and_no_camera(self, side: MakeSide, remote: GeminiServer) -> None:
        exif = Image.Exif()
        exif[0x010F] = "SecretCamera"
        file = io.BytesIO()
        Image.open(io.BytesIO(PHOTO)).save(file, "JPEG", exif=exif, comment=b"SecretComment")
        assert b"SecretCamera" in file.getvalue()
        asked = side()
        asked.prepare(file.getvalue())
        sent = remote.requests[0].picture
        original = asked.storage.path(str(asked.report.original_url).rpartition("/")[2]).read_bytes()
        assert b"Secret" not in original
        assert b"Secret" not in sent
        assert Image.open(io.BytesIO(sent)).size == (120, 80)

    def test_a_large_picture_is_sent_small(self, side: MakeSide, remote: GeminiServer) -> None:
        side().prepare(jpeg(3000, 1500))
        assert Image.open(io.BytesIO(remote.requests[0].picture)).size == (2048, 1024)

    def test_white_art_on_nothing_is_sent_on_a_dark_ground(self, side: MakeSide, remote: GeminiServer) -> None:
        pixels = np.full((60, 80, 4), 255, np.uint8)
        pixels[:20, :, 3] = 0
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        side().prepare(file.getvalue())
        sent = np.asarray(Image.open(io.BytesIO(remote.requests[0].picture)))
        assert sent[:15].mean() < 60
        assert sent[30:].mean() > 250

    def test_the_prompt_can_be_your_own(self, side: MakeSide, remote: GeminiServer, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("My own words.\n")
        side().prepare()
        side(gemini_prompt_file=str(tmp_path / "mine.txt")).prepare()
        assert "printed again" in remote.requests[0].prompt
        assert remote.requests[1].prompt == "My own words."

    @pytest.mark.parametrize("content", [None, b"", b"  \n", b"\xff\xfe\xff", b"x" * 20_001])
    def test_a_prompt_that_cannot_be_used_stops_the_worker(
        self, side: MakeSide, tmp_path: Path, content: bytes | None
    ) -> None:
        if content is not None:
            (tmp_path / "mine.txt").write_bytes(content)
        with pytest.raises(FatalError, match="GEMINI_PROMPT_FILE"):
            side(gemini_prompt_file=str(tmp_path / "mine.txt"))


class TestWhatComesBack:
    def test_the_design_has_the_originals_size_and_the_original_is_kept(
        self, side: MakeSide, remote: GeminiServer
    ) -> None:
        remote.will(server.picture(jpeg(256, 256)))
        asked = side()
        file = io.BytesIO()
        Image.open(io.BytesIO(PHOTO)).save(file, "JPEG", dpi=(200, 200))
        prepared = asked.prepare(file.getvalue())
        picture = decode(prepared.data, pixel_limit=10**8)
        assert (picture.width, picture.height) == (120, 80)
        assert picture.dpi == pytest.approx((200, 200), abs=0.1)
        assert prepared.picture is not None
        assert (prepared.picture.rgb == picture.rgb).all()
        report = asked.report
        assert (report.status, report.calls, report.cached) == ("extracted", 1, False)
        assert report.model == "gemini-3.1-flash-image"
        assert report.tokens is not None
        assert asked.job.tokens == report.tokens
        assert report.tokens.total == 2440
        name = f"design_7_{asked.job_id}_front_original.png"
        assert report.original_url == f"http://service.test/outputs/{name}"
        kept = decode(asked.storage.path(name).read_bytes(), pixel_limit=10**8)
        assert (kept.rgb == decode(file.getvalue(), pixel_limit=10**8).rgb).all()
        assert kept.dpi == pytest.approx((200, 200), abs=0.1)

    def test_transparency_stays_transparent(self, side: MakeSide) -> None:
        pixels = np.full((60, 80, 4), 120, np.uint8)
        pixels[:, :30, 3] = 0
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        prepared = side().prepare(file.getvalue())
        picture = decode(prepared.data, pixel_limit=10**8)
        assert picture.alpha is not None
        assert (picture.alpha == pixels[..., 3]).all()

    def test_transparency_in_the_answer_is_no_black(self, side: MakeSide, remote: GeminiServer) -> None:
        """Given black art on nothing, under which most programs keep black, then the art is there to be seen."""
        pixels = np.zeros((80, 120, 4), np.uint8)
        pixels[20:60, 30:90, 3] = 255
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        remote.will(server.picture(file.getvalue()))
        original = np.full((80, 120, 3), 255, np.uint8)
        original[20:60, 30:90] = 0
        sent = io.BytesIO()
        Image.fromarray(original).save(sent, "PNG")
        asked = side()
        prepared = asked.prepare(sent.getvalue())
        assert prepared.picture is not None
        assert abs(prepared.picture.rgb.astype(int) - original).mean() < 5
        assert asked.report.redrawn is False

    def test_another_design_is_flagged(self, side: MakeSide, remote: GeminiServer) -> None:
        designs = load_designs()
        photo = mockup(designs[15], 3, "plain")
        remote.will(server.picture(jpeg(512, 512, (0, 90, 200))))
        asked = side()
        asked.prepare(photo)
        assert asked.report.redrawn is True
        assert asked.report.warning is not None

    @pytest.mark.parametrize(
        ("answer", "limit_mp"),
        [
            (b"not a picture", 64),
            (jpeg()[:400], 64),
            (jpeg(256, 256), 0.02),
            (bomb_png(), 64),
            (jpeg(1, 1), 64),
            (jpeg(4000, 1), 64),
        ],
        ids=["text", "truncated", "too many pixels", "billions of pixels", "one pixel", "a line"],
    )
    def test_a_picture_that_cannot_be_used_is_an_error_and_is_not_kept(
        self, side: MakeSide, remote: GeminiServer, answer: bytes, limit_mp: float
    ) -> None:
        remote.will(server.picture(answer))
        asked = side(extract_on_error="fail", pixel_limit_mp=limit_mp)
        with pytest.raises(ExtractionError) as caught:
            asked.prepare()
        assert caught.value.code == "extraction_bad_answer"
        assert asked.report.tokens is not None, "it was paid for"
        assert not list((asked.storage.outputs_dir / ".extracted").glob("*.answer"))

    def test_an_answer_of_an_odd_shape_goes_on(self, side: MakeSide, remote: GeminiServer) -> None:
        remote.will(server.picture(jpeg(32, 4000)))
        asked = side()
        assert decode(asked.prepare().data, pixel_limit=10**8).width == 120
        assert (asked.report.status, asked.report.redrawn) == ("extracted", True)

    def test_a_source_that_is_no_picture_is_not_sent(self, side: MakeSide, remote: GeminiServer) -> None:
        with pytest.raises(SourceNotAnImage):
            side().prepare(b"just text")
        assert remote.connections == 0


class TestErrors:
    def test_the_original_goes_on_with_a_warning(self, side: MakeSide, remote: GeminiServer) -> None:
        remote.will(server.stopped("IMAGE_SAFETY"))
        asked = side()
        assert asked.prepare().data == PHOTO
        report = asked.report
        assert (report.status, report.reason) == ("failed", "extraction_blocked")
        assert report.warning is not None
        assert report.detail is not None
        assert "IMAGE_SAFETY" in report.detail
        assert report.original_url is None

    def test_or_the_side_fails_with_the_code(self, side: MakeSide, remote: GeminiServer) -> None:
        remote.will(server.stopped("IMAGE_SAFETY"))
        asked = side(extract_on_error="fail")
        with pytest.raises(ExtractionError) as caught:
            asked.prepare()
        assert caught.value.code == asked.report.reason == "extraction_blocked"
        assert asked.report.warning is None


class TestFaultsAfterTheAnswer:
    """It was paid for: whatever goes wrong now, its cost is told, and EXTRACT_ON_ERROR decides about the side."""

    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise cv2.error("a fault of ours")

        monkeypatch.setattr("worker.extraction.register", fail)

    @pytest.mark.usefixtures("broken")
    def test_an_answer_that_cannot_be_laid_over_the_original(self, side: MakeSide, remote: GeminiServer) -> None:
        asked = side()
        assert asked.prepare().data == PHOTO
        report = asked.report
        assert (report.status, report.reason, report.calls) == ("failed", "extraction_bad_answer", 1)
        assert report.tokens is not None
        assert report.tokens.total == 2440
        assert report.original_url is None
        assert not list(asked.storage.outputs_dir.glob("design_*")), "nothing that no reply names"
        other = side(extract_on_error="fail")  # is not given what nothing could be made of
        with pytest.raises(ExtractionError):
            other.prepare()
        assert len(remote.requests) == 2
        assert other.report.tokens == report.tokens

    def test_an_original_that_finds_no_place(self, side: MakeSide, remote: GeminiServer) -> None:
        """Given the outputs folder takes no more files, though the job's own folder does."""
        asked = side(extract_on_error="fail")
        asked.storage.outputs_dir.mkdir(exist_ok=True)
        # A folder in the way of the file; root may write where a mode forbids it.
        (asked.storage.outputs_dir / f"design_7_{asked.job_id}_front_original.png" / "x").mkdir(parents=True)
        with pytest.raises(OutputNotWritten):
            asked.prepare()
        report = asked.report
        assert (report.status, report.reason, report.calls) == ("failed", "output_not_written", 1)
        assert report.tokens is not None
        with pytest.raises(OutputNotWritten):  # a second delivery fails alike
            asked.prepare()
        side().prepare()
        assert len(remote.requests) == 1, "the answer is kept for others"

    def test_an_answer_that_finds_no_place_is_used_all_the_same(self, side: MakeSide, remote: GeminiServer) -> None:
        asked = side()

        def fill_the_place_then_answer(handler: server.Handler, request: server.Asked) -> None:
            (asked.storage.work_dir(asked.job_id) / "front-answer.bin" / "x").mkdir(parents=True)
            server.picture()(handler, request)

        remote.will(fill_the_place_then_answer)
        assert asked.prepare().picture is not None
        assert (asked.report.status, asked.report.calls) == ("extracted", 1)
        assert len(remote.requests) == 1

    def test_a_cache_that_takes_nothing_is_no_failure(
        self, side: MakeSide, remote: GeminiServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OutputNotWritten("the disk is full")

        monkeypatch.setattr(FolderStorage, "write_hidden", full)
        asked = side()
        asked.prepare()
        assert asked.report.status == "extracted"

    def test_a_volume_without_room_for_a_lock_costs_no_call(self, side: MakeSide, remote: GeminiServer) -> None:
        asked = side()
        asked.storage.outputs_dir.mkdir(exist_ok=True)
        (asked.storage.outputs_dir / ".extracted").write_text("a file where the folder should be")
        assert asked.prepare().data == PHOTO
        assert asked.report.reason == "output_not_written"
        assert remote.connections == 0


class TestMemory:
    """Decoding waits for room in the budget of pixels, and asks for it once only."""

    def test_a_picture_is_not_looked_at_before_there_is_room(self, side: MakeSide, remote: GeminiServer) -> None:
        asked = side({})
        with ThreadPoolExecutor(1) as threads:
            with asked.budget.hold(10**8):
                prepared = threads.submit(asked.prepare)
                eventually(lambda: len(asked.budget._queue) == 1)
                assert not asked.job.extraction
            assert prepared.result(30).picture is not None

    @pytest.mark.parametrize("reply", [server.picture(), server.picture(jpeg()[:400]), server.words("No.")])
    def test_no_step_asks_for_room_while_it_has_some(
        self, settings: Settings, side: MakeSide, remote: GeminiServer, reply: server.Reply
    ) -> None:
        """Given a budget of a single pixel, in which nothing fits beside anything, then every way still ends."""
        remote.will(reply)
        asked = side()
        budget = PixelBudget(1)
        extractor = Extractor(asked.settings, asked.store, asked.storage, budget)
        prepared = PreparedSides(asked.storage, budget, pixel_limit=10**8, cache_bytes=0)
        job = asked.job

        def every_step() -> None:
            for data in (PHOTO, PHOTO, jpeg(90, 90)):
                design = extractor.prepare(job, "front", data, lambda: None)
                prepared.save(job.job_id, "front", design.data, design.picture)

        thread = threading.Thread(target=every_step, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert not budget._queue


def test_while_the_model_draws_the_memory_is_free_for_others(side: MakeSide, remote: GeminiServer) -> None:
    remote.will(server.held(server.picture()))
    asked = side()

    def use_everything() -> bool:
        with asked.budget.hold(10**8):
            return True

    with ThreadPoolExecutor(2) as threads:
        prepared = threads.submit(asked.prepare)
        eventually(remote.entered.is_set)
        try:
            assert threads.submit(use_everything).result(20)
        finally:
            remote.release.set()
        assert prepared.result(30).picture is not None


class TestPaidOnce:
    def test_a_late_delivery_does_not_take_the_bill_from_the_record(self, side: MakeSide, remote: GeminiServer) -> None:
        """Given the job has ended and its files were cleared away, when its message comes once more."""
        asked = side()
        first = asked.prepare()
        before = asked.report
        asked.storage.remove_work(asked.job_id)
        assert asked.prepare().data == first.data
        assert len(remote.requests) == 1
        after = asked.report
        assert (after.calls, after.tokens, after.cached) == (1, before.tokens, False)
        assert asked.job.tokens == before.tokens

    def test_a_call_that_was_lost_with_its_worker_is_counted(self, side: MakeSide) -> None:
        asked = side()
        (asked.storage.work_dir(asked.job_id) / "front-begun.txt").write_text("1")
        asked.prepare()
        assert asked.report.calls == 2

    def test_a_side_that_is_prepared_again_is_not_asked_again(self, side: MakeSide, remote: GeminiServer) -> None:
        asked = side()
        first = asked.prepare()
        again = asked.prepare()
        assert first.data == again.data
        assert len(remote.requests) == 1
        assert asked.report.tokens is not None, "the job's bill does not vanish when it is prepared again"

    @pytest.mark.parametrize("on_error", ["original", "fail"])
    def test_a_failure_is_not_paid_for_again_by_the_same_job(
        self, side: MakeSide, remote: GeminiServer, on_error: str
    ) -> None:
        remote.will(server.words("No."))
        asked = side(extract_on_error=on_error)
        for _ in range(3):
            if on_error == "fail":
                with pytest.raises(ExtractionError, match="No\\.") as caught:
                    asked.prepare()
                assert caught.value.code == "extraction_empty"
            else:
                assert asked.prepare().data == PHOTO
        assert len(remote.requests) == 1
        assert asked.report.calls == 1
        side(extract_on_error="original").prepare()  # another job may have more luck
        assert len(remote.requests) == 2

    def test_another_job_with_the_same_picture_gets_the_kept_answer(self, side: MakeSide, remote: GeminiServer) -> None:
        first, second = side(), side()
        assert first.prepare().data == second.prepare().data
        assert len(remote.requests) == 1
        report = second.report
        assert (report.cached, report.calls, report.tokens) == (True, 0, None)
        assert second.job.tokens is None

    def test_the_kept_answer_serves_also_when_the_outputs_of_its_job_were_removed(
        self, side: MakeSide, remote: GeminiServer
    ) -> None:
        """Given outputs that had their time, then an equal picture costs no call and has an original of its own."""
        first = side()
        first.prepare()
        assert first.store.finish(first.job_id, JobStatus.SUCCEEDED)
        Retention(first.settings.model_copy(update={"output_max_bytes": 1}), first.store, first.storage).sweep()
        assert list(first.storage.outputs()) == []
        second = side()
        second.prepare()
        assert (second.report.cached, len(remote.requests)) == (True, 1)
        (original,) = second.storage.outputs()
        assert original.job_id == second.job_id
        assert second.report.original_url == second.storage.url(original.name)

    def test_calls_that_were_repeated_are_counted_once(self, side: MakeSide, remote: GeminiServer) -> None:
        remote.will(server.problem(503, "UNAVAILABLE", "Busy."))
        asked = side(gemini_tries=2)
        asked.prepare()
        asked.prepare()  # delivered again: the answer is there
        assert len(remote.requests) == 2
        assert asked.store.counters.read()["retries"] == {"extraction": 1}

    def test_another_caller_does_not_get_it(self, side: MakeSide, remote: GeminiServer) -> None:
        side().prepare()
        other = side(caller="another shop")
        other.prepare()
        assert len(remote.requests) == 2
        assert other.report.cached is False

    @pytest.mark.parametrize(
        "own",
        [{"gemini_model": "gemini-3-pro-image"}, {"gemini_image_size": "4K"}, {"gemini_prompt_file": "other.txt"}],
    )
    def test_another_question_is_asked_anew(
        self, side: MakeSide, remote: GeminiServer, own: dict[str, str], tmp_path: Path
    ) -> None:
        if "gemini_prompt_file" in own:
            own = {"gemini_prompt_file": str(tmp_path / "other.txt")}
            (tmp_path / "other.txt").write_text("Other words.")
        side().prepare()
        side(**own).prepare()
        assert len(remote.requests) == 2

    def test_two_identical_sides_at_once_make_one_call(self, side: MakeSide, remote: GeminiServer) -> None:
        remote.will(server.held(server.picture()))
        sides = [side() for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            prepared = [threads.submit(one.prepare) for one in sides]
            eventually(remote.entered.is_set)
            remote.release.set()
            assert len({one.result(30).data for one in prepared}) == 1
        assert len(remote.requests) == 1
        assert sum(one.report.calls for one in sides) == 1

    @pytest.mark.parametrize(
        ("reply", "status", "reason"),
        [(server.picture(), "extracted", "asked"), (server.words("No."), "failed", "extraction_empty")],
        ids=["a picture", "a refusal in words, which is billed too"],
    )
    def test_an_outcome_is_kept_when_redis_goes_away_before_it_is_recorded(
        self, remote: GeminiServer, tmp_path: Path, reply: server.Reply, status: str, reason: str
    ) -> None:
        """Given Redis stops while the model draws, when the step is done again, then nothing is asked again."""
        with RedisServer(persist=True) as own_redis:
            settings = load_settings(redis_url=own_redis.url, outputs_dir=tmp_path / "outputs", base_url="http://x.test",
                                     gemini_api_key=KEY, gemini_base_url=remote.url)  # fmt: skip
            store = Store.from_settings(settings)
            asked = Side(settings, store)
            job = asked.job

            def stop_redis_then_answer(handler: server.Handler, request: server.Asked) -> None:
                own_redis.stop()
                reply(handler, request)

            remote.will(stop_redis_then_answer)
            with pytest.raises(StoreUnavailable):
                asked.extractor.prepare(job, "front", PHOTO, lambda: None)
            own_redis.start()
            asked.prepare()
            assert len(remote.requests) == 1
            assert (asked.report.status, asked.report.reason, asked.report.calls) == (status, reason, 1)
            assert asked.report.tokens is not None
            store.close()

    def test_a_job_that_was_canceled_while_it_waited_for_its_turn_is_not_paid_for(
        self, side: MakeSide, remote: GeminiServer
    ) -> None:
        remote.will(server.held(server.quota("0.1s")))
        first = side(gemini_tries=3)
        with ThreadPoolExecutor(1) as threads:
            outcome = threads.submit(first.prepare)
            eventually(remote.entered.is_set)
            first.store.finish(first.job_id, JobStatus.CANCELED)
            remote.release.set()
            with pytest.raises(JobCanceled):
                outcome.result(20)
        assert len(remote.requests) == 1

    def test_a_broken_answer_of_a_killed_run_is_not_asked_for_again(self, side: MakeSide, remote: GeminiServer) -> None:
        """Given the answer was stored and the worker killed before it was looked at, then it fails without a call."""
        asked = side()
        cost = {"calls": 1, "tokens": {"prompt": 1, "candidates": 2, "total": 3}}
        asked.storage.write_work(asked.job_id, "front-answer.bin", Answer(b"no picture", cost).to_bytes())
        assert asked.prepare().data == PHOTO
        assert asked.report.reason == "extraction_bad_answer"
        assert asked.job.tokens is not None
        assert asked.job.tokens.total == 3
        assert remote.connections == 0

    def test_calls_lost_to_killed_workers_are_repeated_once_only(self, side: MakeSide, remote: GeminiServer) -> None:
        asked = side(extract_on_error="fail")
        begun = asked.storage.work_dir(asked.job_id) / "front-begun.txt"
        begun.write_text("1")  # as a worker leaves it that is killed in mid-call
        remote.will(server.quota())
        with pytest.raises(ExtractionError):
            asked.prepare()
        assert begun.read_text() == "1", "a call that failed has ended"
        again = side(extract_on_error="fail")
        (again.storage.work_dir(again.job_id) / "front-begun.txt").write_text("2")
        with pytest.raises(ExtractionError) as caught:
            again.prepare()
        assert caught.value.code == "extraction_interrupted"
        assert again.report.calls == 2, "both may be on the bill"
        assert len(remote.requests) == 1


class TestAnswers:
    """The cache of answers."""

    @pytest.fixture
    def answers(self, tmp_path: Path) -> Answers:
        return Answers(FolderStorage(tmp_path, "http://x.test"), ttl_s=3600, limit_bytes=10_000)

    def test_what_is_put_in_comes_out(self, answers: Answers) -> None:
        answer = Answer(b"\xff\n\x00picture\n", {"calls": 1, "tokens": {"total": 5}})
        answers.put("a" * 64, answer)
        assert answers.get("a" * 64) == answer
        assert answers.get("b" * 64) is None

    def test_old_answers_are_not_given_and_removed(self, answers: Answers, tmp_path: Path) -> None:
        answers.put("a" * 64, Answer(b"x", {}))
        path = tmp_path / ".extracted" / f"{'a' * 64}.answer"
        os.utime(path, (time.time() - 3700,) * 2)
        assert answers.get("a" * 64) is None
        part = tmp_path / ".extracted" / ".half.part"
        part.touch()
        os.utime(part, (time.time() - 3700,) * 2)
        answers.put("b" * 64, Answer(b"x", {}))
        assert not path.exists()
        assert not part.exists()

    def test_the_oldest_go_when_it_is_full_but_never_the_newest(self, answers: Answers, tmp_path: Path) -> None:
        now = time.time()
        for age, letter in enumerate("fedc"):
            answers.put(letter * 64, Answer(bytes(4000), {}))
            os.utime(tmp_path / ".extracted" / f"{letter * 64}.answer", (now - 100 + age,) * 2)
        answers.put("b" * 64, Answer(bytes(4000), {}))
        assert [answers.get(letter * 64) is not None for letter in "fedcb"] == [False, False, False, True, True]
        answers.put("a" * 64, Answer(bytes(20_000), {}))
        assert answers.get("a" * 64) is not None

    def test_a_damaged_file_is_as_good_as_none(self, answers: Answers, tmp_path: Path) -> None:
        answers.put("a" * 64, Answer(b"x", {}))
        (tmp_path / ".extracted" / f"{'a' * 64}.answer").write_bytes(b"no json\nx")
        assert answers.get("a" * 64) is None

    def test_the_lock_of_a_killed_process_is_free_at_once(self, answers: Answers, tmp_path: Path) -> None:
        script = (
            "import sys, time\nfrom pathlib import Path\nfrom shared.storage import FolderStorage\n"
            "from worker.answers import Answers\n"
            "answers = Answers(FolderStorage(Path(sys.argv[1]), ''), ttl_s=9e9, limit_bytes=1)\n"
            "with answers.lock('a' * 64, 1):\n    print('locked', flush=True)\n    time.sleep(60)\n"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ExtractionError, match="extracted for more than"), answers.lock("a" * 64, 0.3):
            pass
        holder.kill()
        holder.wait()
        holder.stdout.close()
        with answers.lock("a" * 64, 5):
            pass

    def test_every_part_of_the_question_makes_its_name(self) -> None:
        names = {
            question_key(source, model, prompt)
            for source in (b"a", b"b")
            for model in ("m", "mp", "")
            for prompt in ("p", "mp", "")
        }
        assert len(names) == 18
