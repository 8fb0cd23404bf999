"""Request headers that say how a job is to be made: Cancel-After, Idempotency-Key, Cache-Control."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from werkzeug.datastructures import Headers

from shared.errors import InvalidRequest
from shared.jobs import utc_now

#: Longest time that Cancel-After may name (s): a day.
CANCEL_AFTER_LIMIT_S = 86400
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Terms:
    """How a job is to be made.

    Attributes:
        cancel_after_s: it expires when it is not done so many seconds after it was accepted.
        idempotency_key: what the client calls this request, so that a second one is the same.
        use_cache: cells may be taken over from earlier jobs.
    """

    cancel_after_s: int | None
    idempotency_key: str | None
    use_cache: bool

    @property
    def deadline(self) -> datetime | None:
        """The deadline of a job that is accepted now."""
        return None if self.cancel_after_s is None else utc_now() + timedelta(seconds=self.cancel_after_s)


def read_terms(headers: Headers) -> Terms:
    """What a request's headers ask for.

    Raises:
        InvalidRequest: a header is there and cannot be understood; the sentence names it.
    """
    return Terms(
        _read_cancel_after(headers.get("Cancel-After")),
        _read_key(headers.get("Idempotency-Key")),
        not _asks_for_fresh(headers.getlist("Cache-Control")),
    )


def _read_cancel_after(value: str | None) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})([smh]?)", value.strip())
    seconds = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if not 1 <= seconds <= CANCEL_AFTER_LIMIT_S:
        raise InvalidRequest("Cancel-After: must be a time from 1s to 24h, such as 90s, 15m, 2h or a number of seconds")
    return seconds


def _read_key(value: str | None) -> str | None:
    if value is not None and not _KEY.fullmatch(value):
        raise InvalidRequest("Idempotency-Key: must be 1-255 printable ASCII characters without spaces")
    return value


def _asks_for_fresh(values: list[str]) -> bool:
    directives = {word.strip().partition("=")[0].lower() for word in ",".join(values).split(",")}
    return "no-cache" in directives
