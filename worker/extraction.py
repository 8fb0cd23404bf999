"""Design extraction: whether a side needs it, once per side, and what goes on from there.

Paid calls are the reason for the order of things here. A side's outcome is recorded with the job before the task that
made it is acknowledged: an answer first as a file of the job (flushed and renamed), then in the cache for other jobs; a
failure as the side's report. So a task that runs again finds what was paid for. What is lost is an answer that was on
its way when the worker was killed: that call is made once more, and only once, however often the worker dies.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog

from shared.errors import (
    ExtractionBadAnswer,
    ExtractionBusy,
    ExtractionError,
    ExtractionInterrupted,
    ExtractionNotConfigured,
    FatalError,
    SourceError,
)
from shared.jobs import ExtractionReport, Job, TokenUse
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import EXTRACTION_MARK, Store
from worker.answers import Answer, Answers, question_key
from worker.budget import PixelBudget
from worker.gemini import Gemini, Usage, nearest_aspect
from worker.images import Picture, decode, encode_png
from worker.images.artwork import look_at
from worker.images.outgoing import to_send
from worker.images.picture import Pixels
from worker.images.register import Registered, register
from worker.turns import Turns

log = structlog.get_logger(__name__)

_DEFAULT_PROMPT = Path(__file__).parent / "prompts" / "extract.txt"
_PROMPT_LIMIT = 20_000
#: Calls begun for one side whose worker was killed before the answer was stored, until no more is made.
_LOST_CALLS = 2
_ANSWER_NAME = "{side}-answer.bin"
_BEGUN_NAME = "{side}-begun.txt"


@dataclass(frozen=True)
class Prepared:
    """The file that goes through the models, and its pixels where they are known already."""

    data: bytes
    picture: Picture | None = None


class Extractor:
    """Prepares designs for all threads of one worker."""

    def __init__(self, settings: Settings, store: Store, storage: FolderStorage, budget: PixelBudget) -> None:
        """Read the prompt; nothing is connected or imported yet.

        Raises:
            FatalError: the prompt cannot be used, or EXTRACT_DESIGN needs a key that is not set.
        """
        self._settings, self._store, self._storage, self._budget = settings, store, storage, budget
        self.is_available = bool(settings.gemini_api_key.get_secret_value())
        if settings.extract_design == "always" and not self.is_available:
            raise FatalError("EXTRACT_DESIGN=always needs GEMINI_API_KEY; set it, or use auto or never")
        self._prompt = read_prompt(settings.gemini_prompt_file)
        self._gemini = Gemini(settings, Turns(settings, store), self._prompt)
        self._answers = Answers(
            storage, ttl_s=settings.extract_cache_ttl_s, limit_bytes=settings.extract_cache_mb * 1_000_000
        )

    def prepare(self, job: Job, side: str, data: bytes, raise_if_ended: Callable[[], None]) -> Prepared:
        """The side as it goes on: with its design extracted, or as it came.

        The side's report is recorded with the job in either case.

        Args:
            data: the source file.
            raise_if_ended: called before anything is paid for; raises when the job was canceled or is overdue.
        Raises:
            ExtractionNotConfigured: the job insists and there is no key.
            ExtractionError: any other, when EXTRACT_ON_ERROR=fail.
            SourceError: the source cannot be decoded.
            StoreUnavailable, JobNotFound: from recording. Whatever raise_if_ended raises.
        """
        wish = job.options.get("extract") or self._settings.extract_design
        if wish == "never":
            return self._skip(job, side, "not_asked", Prepared(data))
        if not self.is_available:
            if wish == "always":
                return self._fail(job, side, data, ExtractionNotConfigured("GEMINI_API_KEY is not set"), Usage(), 0.0)
            return self._skip(job, side, "not_configured", Prepared(data))
        picture = decode(data, pixel_limit=self._settings.pixel_limit)
        if wish == "auto" and (look := look_at(picture)).kind != "photo":
            return self._skip(job, side, look.kind, Prepared(data, picture))
        reason = "asked" if wish == "always" else "photo"
        return self._extract(job, side, data, picture, reason, raise_if_ended)

    # --- outcomes ---------------------------------------------------------------------------------------------
    def _skip(self, job: Job, side: str, reason: str, prepared: Prepared) -> Prepared:
        self._report(job, side, ExtractionReport(status="skipped", reason=reason))
        return prepared

    def _fail(self, job: Job, side: str, data: bytes, error: ExtractionError, usage: Usage, seconds: float) -> Prepared:
        goes_on = self._settings.extract_on_error == "original" and not isinstance(error, ExtractionNotConfigured)
        report = ExtractionReport(
            status="failed",
            reason=error.code,
            detail=error.message,
            warning="The design was not extracted; the original went through the models." if goes_on else None,
            model=self._settings.gemini_model if self.is_available else None,
            calls=usage.calls,
            tokens=usage.tokens,
            seconds=round(seconds, 3),
        )
        self._report(job, side, report)
        return self._after_failure(report, data, error)

    def _after_failure(self, report: ExtractionReport, data: bytes, error: ExtractionError) -> Prepared:
        if report.warning is None:
            raise error
        return Prepared(data)

    def _report(self, job: Job, side: str, report: ExtractionReport) -> None:
        self._store.set_mark(job.job_id, f"{EXTRACTION_MARK}{side}", report.model_dump_json())
        fields = report.model_dump(include={"status", "reason", "score", "redrawn", "calls", "cached", "seconds"})
        write = log.warning if report.status == "failed" or report.redrawn else log.info
        tokens = report.tokens.total if report.tokens else 0
        write("side_extracted", side=side, tokens=tokens, detail=report.detail, **fields)

    # --- the extraction itself --------------------------------------------------------------------------------
    def _extract(
        self,
        job: Job,
        side: str,
        data: bytes,
        picture: Picture,
        reason: str,
        raise_if_ended: Callable[[], None],
    ) -> Prepared:
        started = time.monotonic()
        usage = Usage()
        # Per caller, as cached cells are: nobody learns what others have sent.
        settings = self._settings
        key = question_key(data, job.caller, settings.gemini_model, self._prompt, settings.gemini_image_size)
        # Whoever holds the lock may wait for a turn and then for the model.
        with ExitStack() as stack:
            try:
                stack.enter_context(self._answers.lock(key, patience_s=3 * self._settings.gemini_timeout_s))
            except ExtractionBusy as exc:
                return self._fail(job, side, data, exc, usage, time.monotonic() - started)
            earlier = self._earlier_failure(job, side)
            if earlier is not None:
                return self._after_failure(earlier[0], data, earlier[1])
            try:
                answer, is_cached = self._answer(job, side, key, picture, usage, raise_if_ended)
            except ExtractionError as exc:
                return self._fail(job, side, data, exc, usage, time.monotonic() - started)
        with self._budget.hold(3 * picture.width * picture.height):
            registered = register(_pixels(answer, self._settings.pixel_limit), picture.rgb)
            prepared = _compose(registered, picture)
        name = self._storage.output_name(job.id, job.job_id, side, "original")
        # As a PNG of its pixels, like every output: what else is in the file (place, camera) is not served.
        self._storage.write_atomic(name, encode_png(_stacked(picture.rgb, picture.alpha), picture.dpi))
        tokens = answer.cost.get("tokens")
        report = ExtractionReport(
            status="extracted",
            reason=reason,
            warning="The extracted design differs from the original; compare the two." if registered.redrawn else None,
            original_url=self._storage.url(name),
            score=registered.score,
            redrawn=registered.redrawn,
            model=self._settings.gemini_model,
            calls=0 if is_cached else int(answer.cost.get("calls", 0)),
            tokens=None if is_cached or tokens is None else TokenUse.model_validate(tokens),
            cached=is_cached,
            seconds=round(time.monotonic() - started, 3),
        )
        self._report(job, side, report)
        return prepared

    def _earlier_failure(self, job: Job, side: str) -> tuple[ExtractionReport, ExtractionError] | None:
        """What an earlier run of this task has failed with: it is not tried, and billed, again."""
        text = self._store.get_mark(job.job_id, f"{EXTRACTION_MARK}{side}")
        if text is None or (report := ExtractionReport.model_validate_json(text)).status != "failed":
            return None
        kinds = {kind.code: kind for kind in ExtractionError.__subclasses__()}
        return report, kinds.get(report.reason, ExtractionBadAnswer)(report.detail or report.reason)

    def _answer(
        self, job: Job, side: str, key: str, picture: Picture, usage: Usage, raise_if_ended: Callable[[], None]
    ) -> tuple[Answer, bool]:
        """The answer to this side's question, and whether it was made for another job."""
        own = self._storage.work_dir(job.job_id) / _ANSWER_NAME.format(side=side)
        try:
            return Answer.from_bytes(own.read_bytes()), False
        except FileNotFoundError:
            pass
        cached = self._answers.get(key)
        if cached is not None:
            return cached, True
        with self._counted(job, side):
            aspect = nearest_aspect(picture.width, picture.height)
            image = self._gemini.extract(to_send(picture), "image/jpeg", aspect, usage, raise_if_ended)
        answer = Answer(
            image, {"calls": usage.calls, "tokens": usage.tokens.model_dump() if usage.tokens is not None else None}
        )
        _pixels(answer, self._settings.pixel_limit)  # what cannot be decoded is not kept
        # From the answer's arrival to the rename in here a kill costs one call; nothing shorter can be done.
        self._storage.write_work(job.job_id, own.name, answer.to_bytes())
        self._answers.put(key, answer)
        return answer, False

    @contextmanager
    def _counted(self, job: Job, side: str) -> Iterator[None]:
        """Count calls that begin and never end: a worker that dies of every answer must not ask for ever.

        Raises:
            ExtractionInterrupted: too many have.
        """
        name = _BEGUN_NAME.format(side=side)
        try:
            begun = int((self._storage.work_dir(job.job_id) / name).read_bytes())
        except FileNotFoundError:
            begun = 0
        if begun >= _LOST_CALLS:
            raise ExtractionInterrupted(f"the worker was stopped {begun} times during this extraction")
        self._storage.write_work(job.job_id, name, str(begun + 1).encode())
        try:
            yield
        except BaseException:  # it ended, if badly: only a kill leaves the count as it is
            self._storage.write_work(job.job_id, name, str(begun).encode())
            raise


def read_prompt(name: str) -> str:
    path = Path(name) if name else _DEFAULT_PROMPT
    try:
        prompt = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise FatalError(f"GEMINI_PROMPT_FILE={path} cannot be read: {exc}") from exc
    if not 0 < len(prompt) <= _PROMPT_LIMIT:
        raise FatalError(f"GEMINI_PROMPT_FILE={path} must hold 1 to {_PROMPT_LIMIT} characters, not {len(prompt)}")
    return prompt


def _pixels(answer: Answer, pixel_limit: int) -> Pixels:
    try:
        return decode(answer.image, pixel_limit=pixel_limit).rgb
    except SourceError as exc:
        raise ExtractionBadAnswer(f"Gemini's picture cannot be used: {exc.message}") from exc


def _compose(registered: Registered, picture: Picture) -> Prepared:
    """The answer in the original's frame, size and resolution; what was transparent stays so."""
    data = b"".join(encode_png(_stacked(registered.rgb, picture.alpha), picture.dpi))
    return Prepared(data, replace(picture, rgb=registered.rgb))


def _stacked(rgb: Pixels, alpha: Pixels | None) -> Pixels:
    return rgb if alpha is None else np.dstack((rgb, alpha))
