"""One HTTP request that survives a lost connection and a busy service, and never does anything twice."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import MaxRetryError, NewConnectionError

from client import __version__
from client.errors import CONNECTION_FAILED, UNEXPECTED_REPLY, CutoutError
from client.patience import Patience

CONNECT_TIMEOUT_S = 10.0
#: The service has said that it did not do it, or a gateway gave up waiting for it: then it may have been done.
_PASSING = frozenset({429, 502, 503, 504})

#: always: even if it may have been done already, so only for what is the same a second time; never: the first answer
#: counts.
Repeat = Literal["always", "never"]


class Transport:
    """Requests to one service; safe to share between threads.

    Requests that were refused for the moment (429, 503) or lost their connection are tried again for `retry_s`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        retry_s: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must be like http://127.0.0.1:8001, not {base_url!r}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ValueError("api_key has characters that no header can carry")
        self.base_url = base_url.rstrip("/")
        self.sleep = sleep
        self._timeout_s, self._retry_s = timeout_s, retry_s
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"cutout-client/{__version__}"
        for scheme in ("http://", "https://"):
            # requests keeps 10 connections; more threads than that would open and close them all the time.
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=64))
        # Not a plain header: a .netrc would replace that, and it would go to whatever host an address names.
        self._session.auth = _Key(self.base_url, api_key)

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    def patience(self) -> Patience:
        """The time for trying again that a new operation has."""
        return Patience(self._retry_s, self.sleep)

    def request(
        self,
        method: str,
        url: str,
        *,
        repeat: Repeat = "always",
        ok: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        read_timeout_s: float | None = None,
        **content: Any,
    ) -> requests.Response:
        """The reply, when its status is one of `ok`.

        Args:
            url: a path of the service ("/jobs"), or an address anywhere.
            read_timeout_s: longest silence of the service (s), if not the client's own.
            content: what requests.Request takes: params, json, data, files.
        Raises:
            CutoutError: any other status, or no reply.
        """
        is_ours = url.startswith("/")
        address = self.base_url + url if is_ours else url
        try:
            # Once: every try sends the same bytes.
            prepared = self._session.prepare_request(requests.Request(method, address, headers=headers, **content))
            self._session.get_adapter(str(prepared.url))  # raises for anything but http(s)
        except (requests.RequestException, UnicodeError) as exc:
            raise CutoutError(UNEXPECTED_REPLY, f"{address[:200]!r} cannot be asked for") from exc
        options: dict[str, Any] = {
            "timeout": (CONNECT_TIMEOUT_S, read_timeout_s or self._timeout_s),
            # Followed, a redirect would turn POST into GET. Files may well have moved to an object store.
            "allow_redirects": not is_ours,
            **self._session.merge_environment_settings(prepared.url, {}, stream, None, None),
        }
        patience = self.patience()
        while True:
            try:
                reply = self._session.send(prepared, **options)
                if reply.status_code in ok:
                    return reply
                error = read_error(reply)
                may_pass = error.status in _PASSING
            except requests.RequestException as exc:
                error, may_pass = connection_error(address, exc), True
            # An error with a job is that job's end, in answer to a repeated key: it will not change.
            if repeat == "never" or not may_pass or error.job_id:
                raise error
            patience.pause(error)

    def json(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        """The JSON object of the reply; arguments as for `request`."""
        with self.request(method, url, **options) as reply:
            return read_object(reply)


class _Key(AuthBase):
    """Sends the API key to the service, and to nobody else."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        self._origin, self._api_key = _origin(base_url), api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._api_key and _origin(request.url or "") == self._origin:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def connection_error(address: str, exc: Exception) -> CutoutError:
    """The error for a request without a reply."""
    parts = urlsplit(address)
    # Without the query: a signed address is a secret.
    error = CutoutError(
        CONNECTION_FAILED, f"{parts.scheme}://{parts.netloc}{parts.path}: {_reason(exc)}", retryable=True
    )
    error.__cause__ = exc
    return error


def _reason(exc: Exception) -> str:
    if isinstance(exc, requests.ConnectTimeout | requests.ReadTimeout):
        return "no answer in time"
    if _never_connected(exc):
        return "nobody answers there"
    return f"the connection broke ({type(exc).__name__})"


def _never_connected(exc: Exception) -> bool:
    """Whether the request cannot have reached the service."""
    cause = exc.args[0] if exc.args else None
    return isinstance(exc, requests.ConnectTimeout) or (
        isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)
    )


def read_error(reply: requests.Response) -> CutoutError:
    """The error that a reply with another status than expected stands for."""
    with reply:
        retry_after_s = _retry_after_s(reply)
        try:
            problem = reply.json()
            return CutoutError.from_problem(reply.status_code, problem, retry_after_s)
        except (ValueError, TypeError, KeyError):  # not JSON, or not a problem: not our service, or a proxy before it
            excerpt = reply.headers.get("Location") or reply.text[:200].strip()
    return CutoutError(
        UNEXPECTED_REPLY,
        f"{reply.request.method} {urlsplit(reply.url).path} was answered with status {reply.status_code}: {excerpt}",
        status=reply.status_code,
        retryable=reply.status_code in _PASSING,
        retry_after_s=retry_after_s,
    )


def read_object(reply: requests.Response) -> dict[str, Any]:
    """The JSON object in a reply.

    Raises:
        CutoutError: it is something else; is base_url right?
    """
    try:
        body = reply.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise CutoutError(
            UNEXPECTED_REPLY, f"{urlsplit(reply.url).path} is not JSON; is base_url right?", status=reply.status_code
        )
    return body


def _retry_after_s(reply: requests.Response) -> float | None:
    """Seconds or a date (RFC 9110, section 10.2.3); None when it is neither."""
    value = reply.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.astimezone(UTC) - datetime.now(UTC)).total_seconds())
