"""A side's question to Gemini: asked once, its answer found again by whoever asks the same.

An answer is stored the moment it arrives: first as a file of the job, flushed and renamed, then, when it is a picture,
in the cache for other jobs of the same caller. So a task that runs again finds what was paid for. What can be lost is
an answer that was on its way, or not yet renamed, when the worker was killed: that call is made once more, and only
once, however often the worker dies. A volume that takes no answer (full) does not cost it: it is used all the same.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from shared.errors import ExtractionBadAnswer, ExtractionInterrupted, FatalError, OutputNotWritten, SourceError
from shared.jobs import Job, TokenUse
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import Store
from shared.store.counters import RETRIES
from worker.answers import Answer, Answers, question_key
from worker.budget import PixelBudget
from worker.gemini import Gemini, Usage, nearest_aspect
from worker.images import Picture, PictureSize, decode, read_size
from worker.images.outgoing import to_send
from worker.turns import Turns

log = structlog.get_logger(__name__)

_DEFAULT_PROMPT = Path(__file__).parent / "prompts" / "extract.txt"
_PROMPT_LIMIT = 20_000
#: Calls begun for one side whose worker was killed before the answer was stored, until no more is made.
_LOST_CALLS = 2
#: Shortest side of an answer that can hold a design (px). Ours: the models draw 512 px and more.
_LEAST_SIDE = 32
_ANSWER_NAME = "{side}-answer.bin"
_BEGUN_NAME = "{side}-begun.txt"


@dataclass(frozen=True)
class Question:
    """One side of one job, ready to be sent.

    Attributes:
        key: names the answer; the same for all jobs of a caller that ask the same.
        picture: the file to send, small. The side's own pixels are not kept while the model draws.
        size: of the side itself.
    """

    job: Job
    side: str
    key: str
    picture: bytes
    size: PictureSize


class Asker:
    """Asks for all threads of one worker."""

    def __init__(self, settings: Settings, store: Store, storage: FolderStorage, budget: PixelBudget) -> None:
        """Read the prompt; nothing is connected or imported yet.

        Raises:
            FatalError: the prompt cannot be used.
        """
        self._settings, self._store, self._storage, self._budget = settings, store, storage, budget
        self._prompt = read_prompt(settings.gemini_prompt_file)
        self._gemini = Gemini(settings, Turns(settings, store), self._prompt)
        self._answers = Answers.from_settings(settings, storage)

    def question(self, job: Job, side: str, data: bytes, picture: Picture) -> Question:
        """What would be asked about a side.

        Args:
            data: its file. picture: its pixels.
        """
        settings = self._settings
        # Per caller, as cached cells are: nobody learns what others have sent.
        key = question_key(data, job.caller, settings.gemini_model, self._prompt, settings.gemini_image_size)
        return Question(job, side, key, to_send(picture), PictureSize(picture.width, picture.height))

    def alone(self, question: Question) -> AbstractContextManager[None]:
        """Nobody else asks this question inside the block.

        Raises:
            ExtractionBusy: another has asked it for longer than a turn and a call may take.
            OutputNotWritten: the volume has no room for a lock.
        """
        return self._answers.lock(question.key, patience_s=3 * self._settings.gemini_timeout_s)

    def answer(self, question: Question, usage: Usage, raise_if_ended: Callable[[], None]) -> tuple[Answer, bool]:
        """The answer, and whether it was made for another job.

        Args:
            usage: becomes what this job has paid for, whatever the outcome.
            raise_if_ended: called before anything is paid for.
        Raises:
            ExtractionError: any of its kinds. StoreUnavailable. Whatever raise_if_ended raises.
            OutputNotWritten: the volume is full before anything is asked.
        """
        job_id, name = question.job.job_id, _ANSWER_NAME.format(side=question.side)
        answer = self._own(job_id, name)
        if answer is None:
            cached = self._answers.get(question.key)
            if cached is not None:
                return cached, True
            answer = self._ask(question, usage, raise_if_ended)
            with _kept_if_possible("job"):
                self._storage.write_work(job_id, name, answer.to_bytes())
        usage.calls, tokens = int(answer.cost["calls"]), answer.cost["tokens"]
        usage.tokens = None if tokens is None else TokenUse.model_validate(tokens)
        with self._budget.hold(self.size_of(answer).pixels):
            self.pixels_of(answer)  # what cannot be decoded helps no other job
        with _kept_if_possible("cache"):
            self._answers.put(question.key, answer)
        return answer, False

    def forget(self, question: Question) -> None:
        """Let no other job have this question's answer: nothing could be made of it."""
        self._answers.forget(question.key)

    def size_of(self, answer: Answer) -> PictureSize:
        """Size of an answer's picture.

        Raises:
            ExtractionBadAnswer: it is none, too large, or too small to hold a design.
        """
        with _as_bad_answer():
            size = read_size(answer.image, pixel_limit=self._settings.pixel_limit)
        if min(size.width, size.height) < _LEAST_SIDE:
            raise ExtractionBadAnswer(f"Gemini's picture of {size.width} x {size.height} px is too small for a design")
        return size

    def pixels_of(self, answer: Answer) -> Picture:
        """An answer's pixels; the caller holds the budget for them.

        Raises:
            ExtractionBadAnswer: it cannot be decoded.
        """
        with _as_bad_answer():
            return decode(answer.image, pixel_limit=self._settings.pixel_limit)

    def _own(self, job_id: str, name: str) -> Answer | None:
        """What an earlier run of this task has got."""
        try:
            return Answer.from_bytes((self._storage.work_dir(job_id) / name).read_bytes())
        except FileNotFoundError:
            return None

    def _ask(self, question: Question, usage: Usage, raise_if_ended: Callable[[], None]) -> Answer:
        aspect = nearest_aspect(question.size.width, question.size.height)
        with self._counted(question.job.job_id, _BEGUN_NAME.format(side=question.side), usage) as lost:
            try:
                image = self._gemini.extract(question.picture, "image/jpeg", aspect, usage, raise_if_ended)
            finally:
                self._store.counters.add(RETRIES, "extraction", max(0, usage.calls - lost - 1))
        tokens = usage.tokens.model_dump() if usage.tokens is not None else None
        return Answer(image, {"calls": usage.calls, "tokens": tokens})

    @contextmanager
    def _counted(self, job_id: str, name: str, usage: Usage) -> Iterator[int]:
        """Count calls that begin and never end: a worker that dies of every answer must not ask for ever.

        Args:
            usage: those that never ended are added to it; Gemini may have billed them.
        Returns:
            How many have before.
        Raises:
            ExtractionInterrupted: too many have. OutputNotWritten: they cannot be counted.
        """
        try:
            begun = int((self._storage.work_dir(job_id) / name).read_bytes())
        except FileNotFoundError:
            begun = 0
        usage.calls += begun
        if begun >= _LOST_CALLS:
            raise ExtractionInterrupted(f"the worker was stopped {begun} times during this extraction")
        self._storage.write_work(job_id, name, str(begun + 1).encode())
        try:
            yield begun
        except BaseException:  # it ended, if badly: only a kill leaves the count as it is
            with contextlib.suppress(OutputNotWritten):  # what went wrong is more than that
                self._storage.write_work(job_id, name, str(begun).encode())
            raise


def read_prompt(name: str) -> str:
    """The text of GEMINI_PROMPT_FILE, or our own.

    Raises:
        FatalError: it cannot be read, or is empty or very long.
    """
    path = Path(name) if name else _DEFAULT_PROMPT
    try:
        prompt = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise FatalError(f"GEMINI_PROMPT_FILE={path} cannot be read: {exc}") from exc
    if not 0 < len(prompt) <= _PROMPT_LIMIT:
        raise FatalError(f"GEMINI_PROMPT_FILE={path} must hold 1 to {_PROMPT_LIMIT} characters, not {len(prompt)}")
    return prompt


@contextmanager
def _kept_if_possible(where: str) -> Iterator[None]:
    """An answer in hand is worth more than a place for it."""
    try:
        yield
    except OutputNotWritten as exc:
        log.warning("answer_not_kept", where=where, detail=exc.message)


@contextmanager
def _as_bad_answer() -> Iterator[None]:
    try:
        yield
    except SourceError as exc:
        raise ExtractionBadAnswer(f"Gemini's picture cannot be used: {exc.message}") from exc
    except Exception as exc:  # a decoder's own fault must not lose the report of what was paid
        log.exception("answer_not_decoded")
        raise ExtractionBadAnswer(f"Gemini's picture cannot be used ({type(exc).__name__})") from exc
