"""Where a side's picture comes from: a guarded download, or a file the API has put on the shared volume.

Limits come first: scheme, address, time, bytes; pixels are checked before decoding (images/picture.py). The address
check is on the address that is connected to, for every redirect again, so that a name which changes its answer
between check and connect gains nothing (the lessons of rembg's GHSA-55v6-g8pm-pw4c; field notes, section 3).
"""

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import structlog
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from shared.errors import (
    SourceAddressForbidden,
    SourceError,
    SourceNotAnImage,
    SourceTimeout,
    SourceTooLarge,
    SourceUnreachable,
)
from shared.jobs import Source
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.urls import shown_url as _shown

log = structlog.get_logger(__name__)

USER_AGENT = "cutout-service"
_CHUNK_BYTES = 256 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
#: IPv6 ranges that carry an IPv4 address: (network, position of the IPv4 bits from the right).
_EMBEDDED = (
    (ipaddress.ip_network("::ffff:0:0/96"), 0),  # mapped, RFC 4291
    (ipaddress.ip_network("::/96"), 0),  # compatible, RFC 4291
    (ipaddress.ip_network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (ipaddress.ip_network("2002::/16"), 80),  # 6to4, RFC 3056
)
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "fec0::/10", "5f00::/16"),
        "3fff::/20",  # documentation, RFC 9637; younger than Python's own list
    )
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def load_source(source: Source, settings: Settings, storage: FolderStorage) -> bytes:
    """The bytes of a side's picture file.

    Raises:
        SourceError: any of its kinds; see shared/errors.py.
    """
    if source.kind == "url":
        assert source.url is not None
        return download(source.url, settings)
    assert source.path is not None
    path = storage.source_path(source.path)
    try:
        if path.stat().st_size > settings.source_limit_bytes:
            raise _too_large(settings.source_limit_bytes)
        return path.read_bytes()
    except OSError as exc:
        raise SourceUnreachable(f"the uploaded file cannot be read: {exc.strerror}") from exc


def download(url: str, settings: Settings) -> bytes:
    """Fetch one URL within the limits of the settings.

    Raises:
        SourceAddressForbidden: it leads to an address that is not public (ALLOW_PRIVATE_SOURCES can name exceptions).
        SourceTimeout: connecting or the whole download took too long.
        SourceTooLarge: more bytes than SOURCE_LIMIT_MB; found from the header or while streaming.
        SourceUnreachable: no such name, refused, broken off, a status other than 200, too many redirects.
    """
    with guarded_session(url, settings, settings.download_timeout_s) as (session, guard):
        for _ in range(settings.download_redirects + 1):
            _check_url(url)
            with session.get(
                url,
                stream=True,
                allow_redirects=False,
                timeout=(settings.download_connect_timeout_s, settings.download_timeout_s),
                # Identity: a small compressed answer must not become a large one.
                headers={"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"},
            ) as response:
                if response.status_code in _REDIRECTS and response.headers.get("Location"):
                    url = urljoin(url, response.headers["Location"])
                    # Each hop connects anew, and is checked anew: a connection kept open may be gone by now.
                    session.close()
                    continue
                if response.status_code != 200:
                    raise SourceUnreachable(f"{_shown(url)} answered {response.status_code}")
                return _read(response, settings.source_limit_bytes, guard)
    raise SourceUnreachable(f"more than {settings.download_redirects} redirects, the last to {_shown(url)}")


@contextmanager
def guarded_session(url: str, settings: Settings, timeout_s: float) -> Iterator[tuple[requests.Session, "_Guard"]]:
    """A session that connects to allowed addresses only, all of it over after `timeout_s`.

    Raises:
        SourceAddressForbidden, SourceTimeout, SourceUnreachable: whatever goes wrong inside the block; `url` is named.
    """
    guard = _Guard(settings, timeout_s)
    with requests.Session() as session:
        session.trust_env = False  # a proxy from the environment would make the address check meaningless
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # no redirect gets what an earlier one set
        session.mount("http://", _GuardedAdapter(guard))
        session.mount("https://", _GuardedAdapter(guard))
        with guard.deadline(), _translated(url, guard):
            yield session, guard


def _read(response: requests.Response, limit: int, guard: "_Guard") -> bytes:
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    data = bytearray()
    for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
        data += chunk
        if len(data) > limit:
            raise _too_large(limit)
    if guard.expired:
        raise TimeoutError  # a connection that the guard has cut reads like one that has ended
    if not data:
        raise SourceNotAnImage("the source is empty")
    return bytes(data)


def _too_large(limit: int) -> SourceTooLarge:
    return SourceTooLarge(f"the source has more than {limit / 1e6:g} MB (SOURCE_LIMIT_MB)")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or 0 < parts.port < 65536
    except ValueError as exc:
        raise SourceUnreachable(f"a redirect leads to {_shown(url)}, which is not a URL") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise SourceAddressForbidden(f"only http and https URLs are fetched, not {_shown(url)}")
    if parts.username is not None or parts.password is not None:
        raise SourceAddressForbidden(f"a URL with a user name or password is not fetched: {_shown(url)}")


class _Guard:
    """What one download (or webhook) may do: which addresses it may connect to, and until when."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.expired = False
        self._until = time.monotonic() + self.timeout_s
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._hosts: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for word in settings.allow_private_sources:
            try:
                self._networks.append(ipaddress.ip_network(word, strict=False))
            except ValueError:
                self._hosts.add(word.lower())

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """Cut every connection when the time is over: read time-outs alone never end a server that drips bytes."""
        timer = threading.Timer(self.timeout_s, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                for sock in self._sockets:
                    sock.close()
                self._sockets.clear()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            for sock in self._sockets:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # already closed

    def connect(self, host: str, port: int, timeout: Any, options: Any) -> socket.socket:
        """Resolve, check, connect, and check the peer: in that order, with one look-up.

        One address that is not allowed is enough to refuse a name: which of them is tried first is the resolver's
        choice, and the answer shall not depend on it.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for _, _, _, _, entry in found:
            self.check(host, str(entry[0]))
        last: OSError | None = None
        for family, _, _, _, entry in found:
            # A name can have hundreds of addresses of which none answers.
            left_s = self._until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                for option in options or ():
                    sock.setsockopt(*option)
                wait_s = float(timeout) if isinstance(timeout, int | float) else self.timeout_s
                sock.settimeout(min(wait_s, left_s))
                sock.connect(entry)
                self.check(host, str(sock.getpeername()[0]))
            except OSError as exc:
                last = exc
                sock.close()
                continue
            except SourceError:
                sock.close()
                raise
            with self._lock:
                # A duplicate: TLS detaches the object we have here, and shutting that down would do nothing.
                self._sockets.append(sock.dup())
                if self.expired:
                    sock.close()
                    raise TimeoutError
            sock.settimeout(wait_s)
            return sock
        raise last or OSError(f"{host} has no address")

    def check(self, host: str, text: str) -> None:
        """Raise SourceAddressForbidden unless the address is public or named in ALLOW_PRIVATE_SOURCES."""
        address = ipaddress.ip_address(text.partition("%")[0])
        if host.lower() in self._hosts or any(address in network for network in self._networks):
            return
        if not is_public(address):
            # The address is for the operator: told to strangers, it would map the inside of the network.
            log.warning("source_address_forbidden", host=host, address=str(address))
            raise SourceAddressForbidden(
                f"{host[:100]} is not at a public address; ALLOW_PRIVATE_SOURCES can name hosts or networks to allow"
            )


def is_public(address: Address) -> bool:
    """True for an address on the public internet, also behind any IPv4 address that an IPv6 one carries."""
    if any(address in network for network in _NEVER if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        for network, shift in _EMBEDDED:
            if address in network and not is_public(ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF)):
                return False
        if address.ipv4_mapped is not None:
            return True  # its IPv4 address has been found public above
    special = address.is_multicast or address.is_reserved or address.is_link_local or address.is_loopback
    return address.is_global and not special and not address.is_unspecified


class _GuardedConnection(HTTPConnection):
    guard: _Guard

    def _new_conn(self) -> socket.socket:
        try:
            return self.guard.connect(self._dns_host, self.port or self.default_port, self.timeout, self.socket_options)
        except socket.gaierror as exc:
            raise urllib3.exceptions.NameResolutionError(self.host, self, exc) from exc
        except TimeoutError as exc:
            raise urllib3.exceptions.ConnectTimeoutError(self, f"connecting to {self.host} took too long") from exc
        except OSError as exc:
            raise urllib3.exceptions.NewConnectionError(self, f"connecting to {self.host} failed: {exc}") from exc


class _GuardedTLSConnection(_GuardedConnection, HTTPSConnection):
    """The same socket, then TLS with the name of the URL as usual."""


class _GuardedAdapter(HTTPAdapter):
    """requests over connections that a guard makes."""

    def __init__(self, guard: _Guard) -> None:
        self._guard = guard
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)

        def pool_class(base: type[Any], connection: type[Any]) -> Callable[..., Any]:
            guarded = type(connection.__name__, (connection,), {"guard": self._guard})
            return type(base.__name__, (base,), {"ConnectionCls": guarded})

        self.poolmanager.pool_classes_by_scheme = {
            "http": pool_class(HTTPConnectionPool, _GuardedConnection),
            "https": pool_class(HTTPSConnectionPool, _GuardedTLSConnection),
        }


@contextmanager
def _translated(url: str, guard: _Guard) -> Iterator[None]:
    """Exceptions of requests and urllib3 become ours, once, here."""
    started = time.monotonic()
    try:
        yield
    except SourceError:
        raise
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
        late = guard.expired or isinstance(
            exc,
            requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError,
        )
        if late or "timed out" in str(exc):
            raise SourceTimeout(f"{_shown(url)} did not finish within {time.monotonic() - started:.1f} s") from exc
        if isinstance(exc, requests.exceptions.InvalidURL | UnicodeError):
            raise SourceUnreachable(f"{_shown(url)} is not a usable URL") from exc
        raise SourceUnreachable(f"{_shown(url)} cannot be fetched: {_reason(exc)}") from exc


def _reason(exc: BaseException) -> str:
    """The innermost reason, without the wrapping libraries' object addresses."""
    reason = getattr(exc, "reason", None) or (exc.args[0] if exc.args else exc)
    if isinstance(reason, BaseException) and reason is not exc:
        return _reason(reason)
    text = re.sub(r"^\w+\(.*?\): ", "", str(reason).rpartition(">: ")[2])
    return re.sub(r"\[Errno -?\d+\] ", "", text)[:200]
