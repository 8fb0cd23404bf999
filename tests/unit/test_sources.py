"""The guarded download against a real server on loopback: addresses, redirects, time, bytes."""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import trustme

from shared.errors import (
    AppError,
    SourceAddressForbidden,
    SourceNotAnImage,
    SourceTimeout,
    SourceTooLarge,
    SourceUnreachable,
)
from shared.jobs import Source
from shared.settings import Settings, load_settings
from shared.storage import FolderStorage
from worker.sources import download, is_public, load_source

BODY = b"picture bytes " * 100


class Handler(BaseHTTPRequestHandler):
    """Answers by path; see each branch."""

    seen: list[str]
    release: threading.Event

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        name, _, rest = self.path[1:].partition("/")
        getattr(self, f"_{name}", self._missing)(rest)

    def _good(self, _: str) -> None:
        self._answer(200, BODY)

    def _missing(self, _: str) -> None:
        self._answer(404, b"no")

    def _empty(self, _: str) -> None:
        self._answer(200, b"")

    def _to(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", unquote(target))  # the client quotes what a path may not hold
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _hop(self, count: str) -> None:
        self._to(f"/hop/{int(count) - 1}" if int(count) > 1 else "/good")

    def _declared(self, size: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(b"x")

    def _endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.release.is_set():  # type: ignore[attr-defined]
                self.wfile.write(bytes(100_000))
        except OSError:
            pass

    def _cut(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(b"half")

    def _drip(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self._trickle(b"x")

    def _headers(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self._trickle(b"y")

    def _trickle(self, byte: bytes) -> None:
        try:
            while not self.server.release.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(byte)
                self.wfile.flush()
        except OSError:
            pass

    def _gzip(self, _: str) -> None:
        assert self.headers["Accept-Encoding"] == "identity"
        self._answer(200, b"\x1f\x8b packed", ("Content-Encoding", "gzip"))

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[str] = []
        self.release = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


def allowing(*words: str, **fields: Any) -> Settings:
    return load_settings(allow_private_sources=words, **fields)


LOCAL = allowing("127.0.0.1")


class TestAddresses:
    @pytest.mark.parametrize(
        "text",
        [
            "127.0.0.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
            "224.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1",
            "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
            "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001::1", "2001:db8::1",
        ],
    )  # fmt: skip
    def test_it_is_not_public(self, text: str) -> None:
        assert not is_public(ipaddress.ip_address(text))

    @pytest.mark.parametrize(
        "text", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "2002:101:101::1"]
    )
    def test_it_is_public(self, text: str) -> None:
        assert is_public(ipaddress.ip_address(text))

    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "017700000001", "127.1", "[::1]"]
    )
    def test_no_spelling_of_loopback_is_fetched(self, server: Server, host: str) -> None:
        with pytest.raises(SourceAddressForbidden):
            download(f"http://{host}:{server.server_port}/good", load_settings())
        assert server.seen == []

    @pytest.mark.parametrize("word", ["127.0.0.1", "127.0.0.0/8", "localhost"])
    def test_settings_can_name_a_host_or_network(self, server: Server, word: str) -> None:
        host = "localhost" if word == "localhost" else "127.0.0.1"
        assert download(f"http://{host}:{server.server_port}/good", allowing(word, "::1")) == BODY

    def test_naming_one_address_does_not_open_others(self, server: Server) -> None:
        with pytest.raises(SourceAddressForbidden):
            download(f"{server.url}/good", allowing("10.0.0.0/8", "example.com"))

    def test_a_name_that_changes_its_answer_is_resolved_once(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A rebinding name answers public first; whatever it answers later is never asked for."""
        answers = iter(["203.0.113.7", "127.0.0.1", "127.0.0.1"])
        asked = []

        def rebinding(host: str, port: int, **_: Any) -> list[Any]:
            address = next(answers)
            asked.append(address)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr("worker.sources.socket.getaddrinfo", rebinding)
        monkeypatch.setattr("worker.sources.is_public", lambda address: str(address) == "203.0.113.7")
        with pytest.raises((SourceUnreachable, SourceTimeout)):
            download(f"http://rebind.test:{server.server_port}/good", load_settings(download_connect_timeout_s=0.3))
        assert asked == ["203.0.113.7"]
        assert server.seen == []


class TestRedirects:
    def test_a_few_are_followed(self, server: Server) -> None:
        assert download(f"{server.url}/hop/5", LOCAL) == BODY

    def test_too_many_are_not(self, server: Server) -> None:
        with pytest.raises(SourceUnreachable, match="more than 5 redirects"):
            download(f"{server.url}/hop/6", LOCAL)

    @pytest.mark.parametrize(
        "target", ["http://10.0.0.1/x", "http://[::ffff:10.0.0.1]/x", "http://169.254.169.254/latest"]
    )
    def test_one_to_a_private_address_is_refused(self, server: Server, target: str) -> None:
        with pytest.raises(SourceAddressForbidden):
            download(f"{server.url}/to/{target}", LOCAL)

    @pytest.mark.parametrize(
        "target", ["file:///etc/passwd", "gopher://x/", "ftp://example.com/a", "http://u:p@example.com/"]
    )
    def test_one_to_another_scheme_or_with_credentials_is_refused(self, server: Server, target: str) -> None:
        with pytest.raises(SourceAddressForbidden):
            download(f"{server.url}/to/{target}", LOCAL)


class TestLimits:
    def test_a_declared_size_is_believed_at_once(self, server: Server) -> None:
        with pytest.raises(SourceTooLarge, match="more than 1 MB"):
            download(f"{server.url}/declared/1000001", allowing("127.0.0.1", source_limit_mb=1))

    def test_an_endless_body_is_cut(self, server: Server) -> None:
        with pytest.raises(SourceTooLarge):
            download(f"{server.url}/endless", allowing("127.0.0.1", source_limit_mb=1))

    @pytest.mark.parametrize("path", ["drip", "headers"])
    def test_a_server_that_drips_is_cut_off_when_the_time_is_over(self, server: Server, path: str) -> None:
        with pytest.raises(SourceTimeout):
            download(f"{server.url}/{path}", allowing("127.0.0.1", download_timeout_s=0.5))

    def test_one_behind_tls_is_cut_off_too(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        authority, trusted = trustme.CA(), tmp_path / "authority.pem"
        authority.cert_pem.write_to_path(str(trusted))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(trusted))
        url = f"https://localhost:{server.server_port}"
        assert download(f"{url}/good", allowing("localhost")) == BODY
        with pytest.raises(SourceTimeout):
            download(f"{url}/drip", allowing("localhost", download_timeout_s=1))

    def test_a_server_that_never_answers_is_left(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            with pytest.raises(SourceTimeout):
                download(url, allowing("127.0.0.1", download_timeout_s=0.3))

    def test_compressed_bodies_are_not_unpacked(self, server: Server) -> None:
        assert download(f"{server.url}/gzip", LOCAL) == b"\x1f\x8b packed"

    def test_no_thread_or_connection_stays_behind(self, server: Server) -> None:
        before = threading.active_count()
        for _ in range(3):
            download(f"{server.url}/good", LOCAL)
        deadline = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before


class TestFaults:
    @pytest.mark.parametrize(
        ("path", "error"),
        [("missing", SourceUnreachable), ("cut", SourceUnreachable), ("empty", SourceNotAnImage)],
    )
    def test_each_has_its_error(self, server: Server, path: str, error: type[AppError]) -> None:
        with pytest.raises(error):
            download(f"{server.url}/{path}", LOCAL)

    def test_a_refused_connection_is_unreachable(self) -> None:
        with pytest.raises(SourceUnreachable):
            download("http://127.0.0.1:1/", LOCAL)

    def test_an_unknown_name_is_unreachable(self) -> None:
        with pytest.raises(SourceUnreachable, match=r"nobody\.invalid"):
            download("http://nobody.invalid/", load_settings())

    def test_messages_do_not_show_queries(self, server: Server) -> None:
        with pytest.raises(SourceUnreachable) as caught:
            download(f"{server.url}/missing?token=secret", LOCAL)
        assert "secret" not in str(caught.value)

    def test_a_proxy_in_the_environment_is_not_used(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert download(f"{server.url}/good", LOCAL) == BODY


class TestUploadedFiles:
    def test_a_file_of_the_job_is_read(self, tmp_path: Path) -> None:
        storage = FolderStorage(tmp_path, "http://x")
        path = storage.write_work("job1", "front.upload", b"bytes")
        assert load_source(Source(kind="file", path=path), LOCAL, storage) == b"bytes"

    def test_a_missing_one_is_unreachable(self, tmp_path: Path) -> None:
        with pytest.raises(SourceUnreachable):
            load_source(Source(kind="file", path=".work/j/front.upload"), LOCAL, FolderStorage(tmp_path, "http://x"))
