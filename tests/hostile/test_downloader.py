"""Servers that answer with bombs, nonsense or nothing, and an environment full of credentials."""

import gzip
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared.errors import AppError
from shared.settings import load_settings
from tests.hostile.building import quarters, saved
from worker.images import decode
from worker.sources import download

BODY = b"a body"
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n"
GOOD = OK + LENGTH % len(BODY) + BODY

Script = Callable[["RawServer", socket.socket], None]


class RawServer:
    """A TCP server on loopback that says what a script tells it, and keeps what it was asked."""

    def __init__(self, script: Script | bytes, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.is_over = threading.Event()
        self._script, self._context = script, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self._context.wrap_socket(connection, server_side=True) if self._context else connection as stream:
                request = b""
                while b"\r\n\r\n" not in request and (part := stream.recv(4096)):
                    request += part
                self.requests.append(request)
                if isinstance(self._script, bytes):
                    stream.sendall(self._script)
                else:
                    self._script(self, stream)
        except OSError:
            return  # the downloader has gone, as it should

    def close(self) -> None:
        self.is_over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    servers = []

    def start(script: Script | bytes, context: ssl.SSLContext | None = None) -> RawServer:
        servers.append(RawServer(script, context))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def fetch(server: RawServer, path: str = "/", scheme: str = "http", **settings: Any) -> bytes:
    limits: dict[str, Any] = {"source_limit_mb": 1, "download_timeout_s": 5, "download_connect_timeout_s": 2}
    allowed = load_settings(**{**limits, "allow_private_sources": ("127.0.0.1", "localhost"), **settings})
    return download(f"{scheme}://{'localhost' if scheme == 'https' else '127.0.0.1'}:{server.port}{path}", allowed)


def for_ever(first: bytes, part: bytes) -> Script:
    """Say the first part once and the second without end, as fast as the other side reads."""

    def script(server: RawServer, stream: socket.socket) -> None:
        stream.sendall(first)
        while not server.is_over.is_set():
            stream.sendall(part)

    return script


def dripping(first: bytes, part: bytes) -> Script:
    """Say the second part again and again, with pauses: no single read ever times out."""

    def script(server: RawServer, stream: socket.socket) -> None:
        stream.sendall(first)
        while not server.is_over.wait(0.1):
            stream.sendall(part)

    return script


NONSENSE: dict[str, tuple[Script | bytes, str]] = {
    # Headers
    "header-of-1-mb": (OK + b"X: " + b"a" * 1_000_000 + b"\r\n" + LENGTH % 6 + BODY, "source_unreachable"),
    "header-without-end": (for_ever(OK + b"X: ", b"a" * 65536), "source_unreachable"),
    "5000-headers": (OK + b"".join(b"X-%d: a\r\n" % i for i in range(5000)) + LENGTH % 6 + BODY, "source_unreachable"),
    "headers-without-end": (for_ever(OK, b"X: a\r\n" * 1000), "source_unreachable"),
    "status-line-of-1-mb": (b"HTTP/1.1 200 " + b"a" * 1_000_000 + b"\r\n\r\n", "source_unreachable"),
    "status-that-is-no-number": (b"HTTP/1.1 OK 200\r\n\r\n", "source_unreachable"),
    "status-99999": (b"HTTP/1.1 99999 OK\r\n\r\n", "source_unreachable"),
    "status-999": (b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n", "source_unreachable"),
    "no-status-at-all": (BODY * 100, "source_unreachable"),
    "another-protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "source_unreachable"),
    "nothing": (b"", "source_unreachable"),
    "nulls": (bytes(5000), "source_unreachable"),
    "header-without-a-name": (OK + b": a\r\n\r\n", "source_not_an_image"),
    "continue-without-end": (for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "source_timeout"),
    "continue-dripping": (dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "source_timeout"),
    "headers-dripping": (dripping(OK, b"X: a\r\n"), "source_timeout"),
    # Lengths
    "length-too-long": (OK + LENGTH % 5000 + BODY, "source_unreachable"),
    "length-negative": (OK + b"Content-Length: -1\r\n\r\n" + b"a" * 2_000_000, "source_too_large"),
    "length-of-4000-digits": (OK + b"Content-Length: " + b"9" * 4000 + b"\r\n\r\n", "source_too_large"),
    "length-of-6000-digits": (OK + b"Content-Length: " + b"9" * 6000 + b"\r\n\r\n", "source_unreachable"),
    "length-in-letters": (OK + b"Content-Length: many\r\n\r\n" + b"a" * 2_000_000, "source_too_large"),
    "length-superscript": (OK + b"Content-Length: \xb2\r\n\r\n" + BODY, "source_unreachable"),
    "two-lengths": (OK + b"Content-Length: 6\r\nContent-Length: 9000\r\n\r\n" + BODY, "source_unreachable"),
    "declared-and-true": (OK + LENGTH % 2_000_000 + bytes(2_000_000), "source_too_large"),
    "endless-body": (for_ever(OK + b"\r\n", bytes(65536)), "source_too_large"),
    "dripping-body": (dripping(OK + LENGTH % 10**6, b"a"), "source_timeout"),
    "partial-content": (b"HTTP/1.1 206 Partial\r\n" + LENGTH % 6 + BODY, "source_unreachable"),
    "no-content": (b"HTTP/1.1 204 Empty\r\n\r\n", "source_unreachable"),
    # Chunks
    "chunk-that-is-no-number": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", "source_unreachable"),
    "chunk-negative": (OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n", "source_unreachable"),
    "chunk-of-16-exabytes": (OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc", "source_unreachable"),
    "chunk-cut-off": (OK + b"Transfer-Encoding: chunked\r\n\r\n10\r\nabc", "source_unreachable"),
    "chunk-line-without-end": (
        for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536), "source_unreachable",
    ),
    "chunks-without-end": (
        for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"4000\r\n" + bytes(0x4000) + b"\r\n"), "source_too_large",
    ),
    "chunks-of-one-byte-dripping": (
        dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"), "source_timeout",
    ),
    "trailers-without-end": (
        for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X: a\r\n" * 1000), "source_timeout",
    ),
    # What only looks like TLS, or like a body
    "an-empty-body": (OK + LENGTH % 0, "source_not_an_image"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_has_its_code_in_bounded_time(serve: Callable[..., RawServer], name: str) -> None:
    script, code = NONSENSE[name]
    # Time enough for what ends by itself; little for what never does.
    timeout_s = 1 if code == "source_timeout" else 20
    with pytest.raises(AppError) as caught:
        fetch(serve(script), download_timeout_s=timeout_s)
    assert caught.value.code == code, caught.value.message
    assert len(caught.value.message) < 600


def test_a_compressed_body_stays_compressed(serve: Callable[..., RawServer]) -> None:
    """A gzip bomb by Content-Encoding is its 20 kB, which are no picture."""
    bomb = gzip.compress(bytes(20_000_000), mtime=0)
    found = fetch(serve(OK + b"Content-Encoding: gzip\r\n" + LENGTH % len(bomb) + bomb))
    assert found == bomb
    with pytest.raises(AppError, match="not a picture"):
        decode(found, pixel_limit=10**6)


def test_what_comes_after_the_declared_length_is_not_read(serve: Callable[..., RawServer]) -> None:
    assert fetch(serve(GOOD + b"HTTP/1.1 200 OK\r\n\r\nanother answer" * 1000)) == BODY


def test_an_answer_in_the_status_line_is_not_repeated_to_clients(serve: Callable[..., RawServer]) -> None:
    with pytest.raises(AppError) as caught:
        fetch(serve(b"HTTP/1.1 500 <script>alert(1)</script>\r\nContent-Length: 0\r\n\r\n"))
    assert caught.value.message.endswith("answered 500")


# --- TLS --------------------------------------------------------------------------------------------------------------


def context_for(name: str, authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that the downloader trusts."""
    authority, file = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(file))
    return authority


def test_tls_with_a_good_certificate_works(serve: Callable[..., RawServer], authority: trustme.CA) -> None:
    assert fetch(serve(GOOD, context_for("localhost", authority)), scheme="https") == BODY


@pytest.mark.parametrize("kind", ["unknown-authority", "another-name", "old-version"])
def test_tls_that_proves_nothing_is_refused(serve: Callable[..., RawServer], authority: trustme.CA, kind: str) -> None:
    context = context_for("elsewhere.test" if kind == "another-name" else "localhost", authority)
    if kind == "unknown-authority":
        context = context_for("localhost", trustme.CA())
    if kind == "old-version":
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    server = serve(GOOD, context)
    with pytest.raises(AppError) as caught:
        fetch(server, scheme="https")
    assert caught.value.code == "source_unreachable"
    assert server.requests == []  # nothing was asked before the certificate was checked


def test_tls_from_a_server_without_it_is_refused(serve: Callable[..., RawServer]) -> None:
    with pytest.raises(AppError) as caught:
        fetch(serve(GOOD), scheme="https", download_connect_timeout_s=0.5)
    assert caught.value.code in ("source_unreachable", "source_timeout")


def test_a_handshake_that_never_ends_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        settings = load_settings(allow_private_sources=("127.0.0.1",), download_timeout_s=1)
        with pytest.raises(AppError) as caught:
            download(url, settings)
        assert caught.value.code == "source_timeout"


# --- what the environment offers ----------------------------------------------------------------------------------


def test_nothing_of_the_environment_goes_along(
    serve: Callable[..., RawServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Proxies, .netrc and certificates that an operator's shell has are not for sources."""
    proxy, server = serve(GOOD), serve(GOOD)
    for name in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login operator password hunter2\ndefault login operator password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    assert os.environ["HTTP_PROXY"]
    assert fetch(server) == BODY
    assert proxy.requests == []
    (request,) = server.requests
    assert b"authorization" not in request.lower()
    assert b"hunter2" not in request


def test_a_cookie_is_not_kept_between_redirects(serve: Callable[..., RawServer]) -> None:
    def script(server: RawServer, stream: socket.socket) -> None:
        if len(server.requests) > 1:
            stream.sendall(GOOD)
        else:
            stream.sendall(b"HTTP/1.1 302 Found\r\nSet-Cookie: a=1\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n")

    server = serve(script)
    assert fetch(server) == BODY
    assert [b"cookie" in request.lower() for request in server.requests] == [False, False]


def test_the_requests_say_no_more_than_they_must(serve: Callable[..., RawServer]) -> None:
    server = serve(GOOD)
    assert fetch(server, "/picture.png?signature=abc") == BODY
    lines = server.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /picture.png?signature=abc HTTP/1.1"
    names = {line.partition(":")[0] for line in lines[1:] if line}
    assert names == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


def test_a_picture_comes_through_all_this(serve: Callable[..., RawServer]) -> None:
    data = saved(quarters(), "PNG")
    assert decode(fetch(serve(OK + LENGTH % len(data) + data)), pixel_limit=10**6).width == 48
