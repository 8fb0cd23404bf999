"""An HTTP client for the Gemini SDK that ends on time and reads no more than it must.

The SDK takes a client of its user's. A read time-out alone never ends a server that drips bytes, and the SDK reads a
body to its end whatever its size; this one cuts the connection when a request's time is over, headers and upload
included, and stops at a limit. Imported with the SDK, when the first design is extracted.
"""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Any, Self

import httpx2


class AnswerTooLarge(Exception):
    """The body is larger than the limit."""


class BoundedClient(httpx2.Client):
    """Like its parent, but a request has one time limit for everything and an answer one of bytes.

    The limit of time is the request's own time-out. Connections are not kept: one TLS handshake is nothing beside the
    seconds of an image model, and a connection that belongs to one request can be cut. Redirects are not followed, so
    the key goes to no other host; proxies of the environment are honoured.
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(follow_redirects=False, limits=httpx2.Limits(max_keepalive_connections=0))
        self._limit_bytes = limit_bytes

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """The whole answer, body included.

        Raises:
            httpx2.ReadTimeout: the time is over. AnswerTooLarge. Whatever httpx2 raises.
        """
        options["stream"] = True
        with _Cut(float(request.extensions["timeout"]["read"])) as cut:
            request.extensions = {**request.extensions, "trace": cut.watch}
            try:
                response = super().send(request, **options)
                with contextlib.closing(response):
                    body = self._read(response)
            except httpx2.TransportError as exc:
                if cut.is_done:
                    raise httpx2.ReadTimeout("the time is over", request=request) from exc
                raise
            if cut.is_done:  # a body without a length ends well when its connection is cut
                raise httpx2.ReadTimeout("the time is over", request=request)
        headers = {
            name: value
            for name, value in response.headers.items()
            if name not in ("content-encoding", "content-length", "transfer-encoding")
        }
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)

    def _read(self, response: httpx2.Response) -> bytes:
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._limit_bytes:
            raise AnswerTooLarge
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._limit_bytes:
                raise AnswerTooLarge
        return bytes(body)


class _Cut:
    """Shuts one request's connection down when its time is over."""

    def __init__(self, limit_s: float) -> None:
        self.is_done = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(limit_s, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()

    def watch(self, event: str, info: dict[str, Any]) -> None:
        """httpcore's `trace` extension: note the socket of a new connection, and let none take too long to make."""
        if event == "connection.connect_tcp.started":
            # Each address of a name gets this time anew; a firewall that drops what it gets would hold us at them all.
            with contextlib.suppress(OSError):  # the name is not known: connecting says so
                found = socket.getaddrinfo(info["host"], info["port"], type=socket.SOCK_STREAM)
                info["timeout"] /= max(1, len(found))
        if event != "connection.connect_tcp.complete":
            return
        sock = info["return_value"].get_extra_info("socket")
        with self._lock:
            # A duplicate: TLS detaches the object we have here, and shutting that down would do nothing.
            self._sockets.append(sock.dup())
            if self.is_done:
                self._shut()

    def _cut(self) -> None:
        with self._lock:
            self.is_done = True
            self._shut()

    def _shut(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # already closed
                sock.shutdown(socket.SHUT_RDWR)
