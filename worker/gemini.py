"""One call to a Gemini image model: ask, try again where that can help, and name every way it can fail.

Asked again is after 429 and 5xx, which bring no picture, and where no connection came about, so that nothing was sent.
A connection that breaks later may have cost a picture already: that ends the extraction.

The SDK (google-genai, the successor of google-generativeai) is imported when the first design is extracted, never at
the worker's start. Its own retries stay off, because they ignore the delay that the server asks for
(googleapis/python-genai#1875) and know nothing of our limits; ours are the only ones. Nothing the SDK or the server
says reaches a log or a record unmasked: both may repeat the key.
"""

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from shared.errors import (
    AppError,
    ExtractionBadAnswer,
    ExtractionBlocked,
    ExtractionBusy,
    ExtractionEmpty,
    ExtractionModelNotFound,
    ExtractionQuota,
    ExtractionRejected,
    ExtractionTimeout,
    ExtractionUnauthorized,
    ExtractionUnavailable,
)
from shared.jobs import TokenUse
from shared.settings import Settings
from worker.backoff import parse_retry_after
from worker.turns import Turns

if TYPE_CHECKING:
    from google import genai
    from google.genai import types

log = structlog.get_logger(__name__)

#: Most bytes of an answer: a 4096 px PNG of photographic art is about 30 MB, a third more in base64.
ANSWER_LIMIT_BYTES = 64_000_000
#: First pause between tries (s), doubled each time; a random part of up to the same again keeps workers apart.
_FIRST_PAUSE_S = 1.0
#: The aspect ratios that the image models take (documentation of ImageConfig).
ASPECTS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
#: Why a candidate was stopped, when it was for what it shows or says.
_BLOCKED = ("SAFETY", "PROHIBITED", "RECITATION", "BLOCKLIST", "SPII", "ESCALATION", "MODEL_ARMOR", "PUP_LIMITED")


@dataclass
class Usage:
    """What one side's extraction has cost so far; also filled when it fails in the end."""

    calls: int = 0
    tokens: TokenUse | None = None


class Gemini:
    """The configured model; shared by all threads of a worker."""

    def __init__(self, settings: Settings, turns: Turns, prompt: str) -> None:
        self._settings = settings
        self._turns = turns
        self._prompt = prompt
        self._client: genai.Client | None = None
        self._lock = threading.Lock()

    def extract(
        self, picture: bytes, mime_type: str, aspect: str, usage: Usage, raise_if_ended: Callable[[], None]
    ) -> bytes:
        """The design in a picture, as the file that the model answers.

        Args:
            picture: the file to send. aspect: one of ASPECTS.
            usage: calls and tokens are added to it, whatever the outcome.
            raise_if_ended: called before each call; what it raises ends the extraction before it costs more.
        Raises:
            ExtractionError: any of its kinds.
            StoreUnavailable: Redis does not answer, so nobody knows whose turn it is.
        """
        limit_s, tries = self._settings.gemini_timeout_s, self._settings.gemini_tries
        with self._turns.take(limit_s):
            deadline = time.monotonic() + limit_s  # from here on: waiting for the first turn is not the model's fault
            raise_if_ended()
            outcome = self._try(picture, mime_type, aspect, limit_s, usage)
        for attempt in range(1, tries):
            if isinstance(outcome, bytes) or not outcome.again:
                break
            # Jitter is no secret. What the server asks for makes the pause longer, never shorter.
            pause_s = _FIRST_PAUSE_S * 2 ** (attempt - 1) * (1 + random.random())  # noqa: S311
            pause_s = max(pause_s, outcome.delay_s)
            if time.monotonic() + pause_s >= deadline:
                break  # nothing that comes after the deadline is waited for
            log.warning("gemini_retry", code=outcome.error.code, attempt=attempt, pause_s=round(pause_s, 2))
            time.sleep(pause_s)
            try:
                with self._turns.take(deadline - time.monotonic()):
                    raise_if_ended()
                    outcome = self._try(picture, mime_type, aspect, deadline - time.monotonic(), usage)
            except ExtractionBusy:
                break  # what went wrong at first is what the client should read
        if isinstance(outcome, bytes):
            return outcome
        # Not chained: the SDK's exceptions carry the server's words, which may repeat the key.
        raise outcome.error from None

    def _try(self, picture: bytes, mime_type: str, aspect: str, limit_s: float, usage: Usage) -> "bytes | _Failure":
        usage.calls += 1
        try:
            response = self._ask(picture, mime_type, aspect, limit_s)
            usage.tokens = (usage.tokens or TokenUse()) + _tokens(response)
            return _image_of(response, self._mask)
        except AppError as exc:
            return _Failure(exc)
        except Exception as exc:
            return _failure(exc, limit_s, self._settings.gemini_model, self._mask)

    def _ask(self, picture: bytes, mime_type: str, aspect: str, limit_s: float) -> "types.GenerateContentResponse":
        from google.genai import types

        size = self._settings.gemini_image_size
        image = types.ImageConfig(aspect_ratio=aspect, image_size=None if size == "default" else size)
        return self._connected().models.generate_content(
            model=self._settings.gemini_model,
            contents=types.Content(
                role="user",
                parts=[types.Part.from_bytes(data=picture, mime_type=mime_type), types.Part(text=self._prompt)],
            ),
            config=types.GenerateContentConfig(
                # With text allowed, a refusal comes with its reason instead of as nothing.
                response_modalities=["TEXT", "IMAGE"],
                image_config=image,
                # Nothing may turn one call into several.
                automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
                automatic_continuation=False,
                http_options=types.HttpOptions(timeout=max(1, int(limit_s * 1000))),
            ),
        )

    def _connected(self) -> "genai.Client":
        with self._lock:
            if self._client is None:
                from google import genai
                from google.genai import types

                from worker.gemini_http import BoundedClient

                self._client = genai.Client(
                    vertexai=False,  # whatever GOOGLE_* variables say
                    api_key=self._settings.gemini_api_key.get_secret_value(),
                    http_options=types.HttpOptions(
                        base_url=self._settings.gemini_base_url,
                        api_version="v1beta",
                        retry_options=types.HttpRetryOptions(attempts=1),
                        httpx_client=BoundedClient(ANSWER_LIMIT_BYTES),
                    ),
                )
            return self._client

    def _mask(self, text: object) -> str:
        """Words of the SDK or the server, short and without the key."""
        key = self._settings.gemini_api_key.get_secret_value()
        return re.sub(r"\s+", " ", str(text or "").replace(key, "***"))[:300]


@dataclass(frozen=True)
class _Failure:
    """One try that failed: the error, whether another may help, and the pause that the server asks for (s; 0: none)."""

    error: AppError
    again: bool = False
    delay_s: float = 0.0


def nearest_aspect(width: int, height: int) -> str:
    """The model's aspect ratio that is nearest to a picture's."""

    def distance(aspect: str) -> float:
        across, down = (int(part) for part in aspect.split(":"))
        ratio = (width * down) / (height * across)
        return max(ratio, 1 / ratio)

    return min(ASPECTS, key=distance)


def _tokens(response: "types.GenerateContentResponse") -> TokenUse:
    usage = response.usage_metadata
    if usage is None:
        return TokenUse()
    return TokenUse(
        prompt=usage.prompt_token_count or 0,
        # Thoughts are billed as output, so they are part of what was answered.
        candidates=(usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
        total=usage.total_token_count or 0,
    )


def _image_of(response: "types.GenerateContentResponse", mask: Any) -> bytes:
    """The last picture that is no intermediate thought.

    Raises:
        ExtractionBlocked, ExtractionEmpty: there is none; the reason that was given is in the message.
    """
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        raise ExtractionBlocked(f"Gemini does not take this picture ({feedback.block_reason.value})")
    words = []
    reason = "no candidate"
    for candidate in response.candidates or []:
        reason = candidate.finish_reason.value if candidate.finish_reason is not None else "no reason"
        parts = [part for part in (candidate.content.parts if candidate.content else None) or [] if not part.thought]
        images = [part.inline_data.data for part in parts if part.inline_data is not None and part.inline_data.data]
        if any(word in reason for word in _BLOCKED):
            raise ExtractionBlocked(f"Gemini stopped its answer to this picture ({reason})")
        if images:
            return images[-1]
        words += [part.text for part in parts if part.text]
    said = mask(" ".join(words))
    raise ExtractionEmpty(f"Gemini answered without a picture ({reason})" + (f": {said}" if said else ""))


def _failure(exc: Exception, limit_s: float, model: str, mask: Any) -> _Failure:
    """Exceptions of the SDK and of its HTTP client become ours, once, here."""
    import httpx2
    from google.genai import errors

    from worker.gemini_http import AnswerTooLarge

    if isinstance(exc, errors.APIError):
        return _api_failure(exc, model, mask)
    if isinstance(exc, AnswerTooLarge):
        limit_mb = ANSWER_LIMIT_BYTES / 1e6
        return _Failure(ExtractionBadAnswer(f"Gemini's answer is larger than {limit_mb:g} MB"))
    if isinstance(exc, httpx2.TimeoutException):
        return _Failure(ExtractionTimeout(f"Gemini did not answer within {limit_s:.0f} s (GEMINI_TIMEOUT_S)"))
    if isinstance(exc, httpx2.ConnectError):
        return _Failure(ExtractionUnavailable(f"Gemini cannot be reached ({type(exc).__name__})"), again=True)
    if isinstance(exc, httpx2.RequestError):
        message = "the connection to Gemini broke off; it is not asked again, because that may be paid for already"
        return _Failure(ExtractionUnavailable(f"{message} ({type(exc).__name__})"))
    log.warning("gemini_answer_unreadable", kind=type(exc).__name__)
    return _Failure(ExtractionBadAnswer(f"Gemini's answer cannot be read ({type(exc).__name__})"))


def _api_failure(exc: Any, model: str, mask: Any) -> _Failure:
    code, said = int(exc.code or 0), mask(exc.message)
    details = _details(exc)
    wrong_key = any(detail.get("reason") in ("API_KEY_INVALID", "API_KEY_EXPIRED") for detail in details)
    if code in (401, 403) or wrong_key or (code == 400 and "api key" in said.lower()):
        return _Failure(ExtractionUnauthorized(f"Gemini does not accept GEMINI_API_KEY ({code})"))
    if code == 404:
        return _Failure(ExtractionModelNotFound(f"Gemini does not know the model {model} (GEMINI_MODEL)"))
    if code == 429:
        return _Failure(ExtractionQuota(f"Gemini's quota is used up: {said}"), again=True, delay_s=_delay(exc, details))
    if code >= 500:
        error = ExtractionUnavailable(f"Gemini answered {code}: {said}")
        return _Failure(error, again=True, delay_s=_delay(exc, details))
    if 400 <= code < 500:
        return _Failure(ExtractionRejected(f"Gemini refused the request ({code}): {said}"))
    return _Failure(ExtractionBadAnswer(f"Gemini's answer has the status {code}"))


def _details(exc: Any) -> list[dict[str, Any]]:
    body = exc.details if isinstance(exc.details, dict) else {}
    error = body.get("error", body)
    found = error.get("details") if isinstance(error, dict) else None
    return [detail for detail in found if isinstance(detail, dict)] if isinstance(found, list) else []


def _delay(exc: Any, details: list[dict[str, Any]]) -> float:
    """The pause the server asks for (s): the longer one of RetryInfo in the body and the header Retry-After."""
    delays = [0.0]
    for detail in details:
        match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)s", str(detail.get("retryDelay", "")))
        if str(detail.get("@type", "")).endswith("google.rpc.RetryInfo") and match:
            delays.append(float(match[1]))
    if exc.response is not None:
        delays.append(parse_retry_after(exc.response.headers.get("retry-after")) or 0.0)
    return max(delays)
