"""The Prefer header (RFC 7240): how long a client wants to wait."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's name for a word
_WORD = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*")'
_PARAMETER = rf"{_TOKEN}(?:\s*=\s*{_WORD})?"
#: One preference of a list: name, optional value, optional parameters (which are allowed and mean nothing to us).
_PREFERENCE = re.compile(rf"\s*({_TOKEN})(?:\s*=\s*({_WORD}))?(?:\s*;\s*(?:{_PARAMETER})?)*\s*(?:,|$)")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|,')


@dataclass(frozen=True)
class Preferences:
    """What a client prefers.

    Attributes:
        respond_async: it would rather have a 202 than wait longer than `wait_s`.
        wait_s: the longest it wants to wait (s); None when it does not say.
    """

    respond_async: bool = False
    wait_s: int | None = None


def parse_prefer(values: Iterable[str]) -> Preferences:
    """Read all Prefer headers of a request. Of a preference given twice the first counts; what we do not know or
    cannot read is ignored, as RFC 7240 asks.
    """
    found: dict[str, str] = {}
    for name, value in _preferences(",".join(values)):
        found.setdefault(name.lower(), value)
    wait = found.get("wait", "")
    return Preferences(
        respond_async=found.get("respond-async") == "",
        wait_s=int(wait) if re.fullmatch(r"[0-9]{1,9}", wait) else None,
    )


def _preferences(text: str) -> Iterable[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _PREFERENCE.match(text, position)
        if match:
            value = match[2] or ""
            yield match[1], re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
            position = match.end()
        else:
            # Unreadable: go on after the next comma that is not inside quotes.
            commas = (found for found in _QUOTED.finditer(text, position) if found[0] == ",")
            comma = next(commas, None)
            position = comma.end() if comma else len(text)
