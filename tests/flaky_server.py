"""A loopback HTTP server that answers as planned, badly on purpose, and notes what it was asked."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """What the server does with a request.

    Attributes:
        body: an object is sent as JSON.
        cut_at: close the connection after so many bytes of the body; Content-Length still promises all of it.
        is_dropped: close the connection without an answer.
        has_length: whether Content-Length is sent.
    """

    status: int = 200
    body: bytes | dict[str, Any] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    is_dropped: bool = False
    has_length: bool = True


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


def problem(status: int, code: str, **headers: str) -> Answer:
    """A refusal as the service words it; `Retry_After="7"` is a header."""
    body = {"type": "x", "title": "Title", "status": status, "detail": "why", "code": code, "request_id": "req-1"}
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


class FlakyServer:
    """A context manager; `plan` first, then let the client come.

    Attributes:
        asked: all requests so far.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._plans: dict[tuple[str, str], list[Answer]] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.partition("?")[0]
                server.asked.append(Asked(self.command, self.path, dict(self.headers.items()), body))
                plan = server._plans.get((self.command, path)) or [problem(404, "not_found")]
                answer = plan.pop(0) if len(plan) > 1 else plan[0]
                self.close_connection = True
                if not answer.is_dropped:
                    self._send(answer)

            def _send(self, answer: Answer) -> None:
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                if answer.has_length:
                    self.send_header("Content-Length", str(len(content)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: answer.cut_at])

            do_GET = do_POST = do_DELETE = _answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def plan(self, method: str, path: str, *answers: Answer) -> None:
        """Answer requests in this order; the last answer stays."""
        self._plans[method, path] = list(answers)

    def paths(self) -> list[str]:
        """ "METHOD path" of every request so far."""
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
