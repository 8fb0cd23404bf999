"""When a webhook is tried again, and what a Retry-After means."""

import random
import re
from datetime import UTC
from email.utils import parsedate_to_datetime

from shared.jobs import utc_now

#: Seconds between one try and the next: 10 tries within 2 hours, close together first, because most faults are short.
DELAYS_S = (5, 25, 60, 120, 300, 600, 1200, 1800, 3090)
#: Share by which a delay is shorter or longer, so that a receiver that comes back is not met by all at once.
_JITTER = 0.1
#: Longest Retry-After that is honoured (s).
_RETRY_AFTER_LIMIT_S = 3600.0


def next_delay_s(tries: int, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next try after so many; None when there is none.

    Args:
        tries: how many have been made, 1 or more.
        retry_after_s: what the receiver asked for; it may make the pause longer, not shorter.
    """
    if tries > len(DELAYS_S):
        return None
    delay_s = DELAYS_S[tries - 1] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, no secret
    return max(delay_s, min(retry_after_s or 0.0, _RETRY_AFTER_LIMIT_S))


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, in either of its forms (RFC 9110); None when it cannot be read."""
    if re.fullmatch(r"[0-9]{1,9}", value or ""):
        return float(value or "")
    try:
        when = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - utc_now()).total_seconds())
