"""URLs that clients hand in: what is accepted, and how they are shown."""

import re
from urllib.parse import urlsplit

URL_LIMIT = 8192


def check_url(value: str, schemes: str = "http://, https:// or data:") -> str:
    """The http(s) URL as it is, if it is one that may be asked for.

    Args:
        schemes: what the sentence about a wrong beginning suggests.
    Raises:
        ValueError: a sentence without its subject ("must name a host ...").
    """
    if len(value) > URL_LIMIT:
        raise ValueError(f"is a URL of {len(value)} characters; the limit is {URL_LIMIT}")
    if re.search(r"[\x00-\x20\x7f\\]", value):
        raise ValueError("must not contain spaces, backslashes or control characters; write them as %20 and so on")
    try:
        parts = urlsplit(value)
        has_port = parts.port is None or parts.port > 0
    except ValueError as exc:
        # The parser's own words repeat what it could not read, which may be a password.
        raise ValueError("is not a URL that can be read; check its host and port") from exc
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"must begin with {schemes}")
    if not parts.hostname or not has_port:
        raise ValueError("must name a host, as in https://example.com/front.png")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password")
    return value


def shown_url(url: str) -> str:
    """A URL for messages: without credentials, query or fragment, which may carry secrets."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # a redirect may lead to anything
        return "an address that cannot be read"
    if ":" in host:
        host = f"[{host}]"
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"[:200]
