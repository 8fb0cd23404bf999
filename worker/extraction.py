"""Design extraction: whether a side needs it, and what goes on from there.

A side's outcome is recorded with the job before the task that made it is acknowledged: an answer as a file
(worker/asking.py), a failure as the side's report. So a task that runs again pays for neither a second time, and what
the job has spent stays in its report.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog

from shared.errors import (
    ExtractionBadAnswer,
    ExtractionError,
    ExtractionNotConfigured,
    FatalError,
    OutputNotWritten,
    StoreUnavailable,
)
from shared.jobs import ExtractionReport, Job
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import EXTRACTION_MARK, Store
from worker.answers import Answer
from worker.asking import Asker, Question
from worker.budget import PixelBudget
from worker.gemini import Usage
from worker.images import Picture, decode, encode_png, read_size
from worker.images.artwork import look_at
from worker.images.outgoing import on_ground
from worker.images.picture import Pixels
from worker.images.register import Registered, register

log = structlog.get_logger(__name__)

_REDRAWN = "The extracted design differs from the original (score {:.2f}); compare the two."
#: A failure that Redis could not be told of.
_FAILURE_NAME = "{side}-failure.json"
#: What EXTRACT_ON_ERROR decides about: Gemini did not deliver, or what it delivered cannot be used or written.
_Failed = ExtractionError | OutputNotWritten


@dataclass(frozen=True)
class Prepared:
    """The file that goes through the models, and its pixels where they are known already.

    Attributes:
        report: the side's report, where the caller has yet to record it.
    """

    data: bytes
    picture: Picture | None = None
    report: ExtractionReport | None = None


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
        self._asker = Asker(settings, store, storage, budget)

    def prepare(self, job: Job, side: str, data: bytes, raise_if_ended: Callable[[], None]) -> Prepared:
        """The side as it goes on: with its design extracted, or as it came.

        The side's report is recorded with the job in either case; that of one for which nothing was paid comes back
        instead, to be recorded together with whatever else there is to say.

        Args:
            data: the source file.
            raise_if_ended: called before anything is paid for; raises when the job was canceled or is overdue.
        Raises:
            ExtractionNotConfigured: the job insists and there is no key.
            ExtractionError, OutputNotWritten: any other, when EXTRACT_ON_ERROR=fail.
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
        size = read_size(data, pixel_limit=self._settings.pixel_limit)
        with self._budget.hold(size.pixels):
            picture = decode(data, pixel_limit=self._settings.pixel_limit)
            if wish == "auto" and (look := look_at(picture)).kind != "photo":
                return self._skip(job, side, look.kind, Prepared(data, picture))
            question = self._asker.question(job, side, data, picture)
            del picture
        return self._extract(question, data, "asked" if wish == "always" else "photo", raise_if_ended)

    # --- outcomes ---------------------------------------------------------------------------------------------
    def _skip(self, job: Job, side: str, reason: str, prepared: Prepared) -> Prepared:
        report = ExtractionReport(status="skipped", reason=reason)
        if side in job.extraction or self._failure_file(job, side).exists():
            self._report(job, side, report)
            return prepared
        self._log(side, report)
        return replace(prepared, report=report)

    def _fail(self, job: Job, side: str, data: bytes, error: _Failed, usage: Usage, seconds: float) -> Prepared:
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
        try:
            self._report(job, side, report)
        except StoreUnavailable:  # the step is done again when Redis is back, and shall know that this was paid for
            with contextlib.suppress(OutputNotWritten):
                self._storage.write_work(job.job_id, _FAILURE_NAME.format(side=side), report.model_dump_json().encode())
            raise
        if not goes_on:
            raise error
        return Prepared(data)

    def _report(self, job: Job, side: str, report: ExtractionReport) -> None:
        earlier = self._earlier_report(job, side)
        if earlier is not None and earlier.calls > report.calls:
            # A second delivery that came late, when the job's own answer was cleared away: the job has paid for it.
            spent = {"calls": earlier.calls, "tokens": earlier.tokens, "cached": earlier.cached}
            report = report.model_copy(update=spent)
        self._store.set_mark(job.job_id, f"{EXTRACTION_MARK}{side}", report.model_dump_json())
        self._log(side, report)

    @staticmethod
    def _log(side: str, report: ExtractionReport) -> None:
        fields = report.model_dump(include={"status", "reason", "score", "redrawn", "calls", "cached", "seconds"})
        write = log.warning if report.status == "failed" or report.redrawn else log.info
        tokens = report.tokens.total if report.tokens else 0
        write("side_extracted", side=side, tokens=tokens, detail=report.detail, **fields)

    # --- the extraction itself --------------------------------------------------------------------------------
    def _extract(self, question: Question, data: bytes, reason: str, raise_if_ended: Callable[[], None]) -> Prepared:
        job, side = question.job, question.side
        started, usage = time.monotonic(), Usage()
        try:
            with self._asker.alone(question):
                self._raise_earlier_failure(job, side)
                answer, is_cached = self._asker.answer(question, usage, raise_if_ended)
            prepared, registered = self._finish(question, data, answer)
        except (ExtractionError, OutputNotWritten) as exc:
            return self._fail(job, side, data, exc, usage, time.monotonic() - started)
        report = ExtractionReport(
            status="extracted",
            reason=reason,
            warning=_REDRAWN.format(registered.score) if registered.redrawn else None,
            original_url=self._storage.url(self._original_name(question)),
            score=registered.score,
            redrawn=registered.redrawn,
            model=self._settings.gemini_model,
            calls=usage.calls,
            tokens=usage.tokens,
            cached=is_cached,
            seconds=round(time.monotonic() - started, 3),
        )
        self._report(job, side, report)
        return prepared

    def _finish(self, question: Question, data: bytes, answer: Answer) -> tuple[Prepared, Registered]:
        """Lay the answer over the original, and keep the original's pixels as an output.

        Raises:
            ExtractionBadAnswer: nothing can be made of it. OutputNotWritten: the original finds no place.
        """
        # In memory at once: the original, the answer, and the answer laid over the original.
        with self._budget.hold(2 * question.size.pixels + self._asker.size_of(answer).pixels):
            picture = decode(data, pixel_limit=self._settings.pixel_limit)
            # The colours under transparent pixels are anything, mostly black.
            drawn = on_ground(self._asker.pixels_of(answer))
            try:
                registered = register(drawn, picture.rgb)
                prepared = _compose(registered, picture)
            except Exception as exc:  # a fault of ours, but an answer that all of its jobs would meet again
                log.exception("answer_not_laid")
                self._asker.forget(question)
                kind = type(exc).__name__
                raise ExtractionBadAnswer(f"Gemini's picture could not be laid over the original ({kind})") from exc
            # As a PNG, like every output: what else is in the file (place, camera) is not served.
            original = encode_png(_stacked(picture.rgb, picture.alpha), picture.dpi)
            self._storage.write_atomic(self._original_name(question), original)
            return prepared, registered

    def _original_name(self, question: Question) -> str:
        return self._storage.output_name(question.job.id, question.job.job_id, question.side, "original")

    def _earlier_report(self, job: Job, side: str) -> ExtractionReport | None:
        text: str | bytes | None = self._store.get_mark(job.job_id, f"{EXTRACTION_MARK}{side}")
        if text is None:
            with contextlib.suppress(FileNotFoundError):
                text = self._failure_file(job, side).read_bytes()
        return None if text is None else ExtractionReport.model_validate_json(text)

    def _failure_file(self, job: Job, side: str) -> Path:
        return self._storage.work_path(job.job_id) / _FAILURE_NAME.format(side=side)

    def _raise_earlier_failure(self, job: Job, side: str) -> None:
        """Fail as an earlier run of this task has failed: it is not tried, and billed, again."""
        report = self._earlier_report(job, side)
        if report is not None and report.status == "failed":
            known: list[type[_Failed]] = [*ExtractionError.__subclasses__(), OutputNotWritten]
            kinds = {kind.code: kind for kind in known}
            raise kinds.get(report.reason, ExtractionBadAnswer)(report.detail or report.reason)


def _compose(registered: Registered, picture: Picture) -> Prepared:
    """The answer in the original's frame, size and resolution; what was transparent stays so."""
    data = b"".join(encode_png(_stacked(registered.rgb, picture.alpha), picture.dpi))
    return Prepared(data, replace(picture, rgb=registered.rgb))


def _stacked(rgb: Pixels, alpha: Pixels | None) -> Pixels:
    return rgb if alpha is None else np.dstack((rgb, alpha))
