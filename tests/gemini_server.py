"""A server on loopback that speaks the Gemini REST protocol as far as an extraction uses it.

    POST /v1beta/models/{model}:generateContent    x-goog-api-key; JSON with one inline picture and the prompt

The real SDK talks to it (GEMINI_BASE_URL), so nothing has to be patched. What it answers is a list of replies, taken
one by one; the last one stays. Every request is kept in `requests`, also those whose connection ended early.
"""

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from PIL import Image

KEY = "AIzaTestKey-0123456789abcdefghijklmnopqr"
USAGE = {"promptTokenCount": 1290, "candidatesTokenCount": 1120, "thoughtsTokenCount": 30, "totalTokenCount": 2440}


def jpeg(width: int = 64, height: int = 64, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """A square of one colour on white, as a JPEG file."""
    image = Image.new("RGB", (width, height), "white")
    image.paste(colour, (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


@dataclass
class Asked:
    """One request as the server saw it."""

    model: str
    key: str | None
    picture: bytes
    prompt: str
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)


Reply = Callable[["Handler", Asked], None]


# --- replies --------------------------------------------------------------------------------------------------------
def picture(data: bytes | None = None, *, thought: bytes | None = None, **extra: Any) -> Reply:
    """200 with a picture; `thought` is an intermediate one that must not be taken."""

    def reply(handler: "Handler", asked: Asked) -> None:
        parts: list[dict[str, Any]] = []
        if thought is not None:
            parts.append({"thought": True, **_inline(thought)})
        parts += [{"text": "Here is the design."}, _inline(jpeg() if data is None else data)]
        handler.send_json(200, _candidate(parts, "STOP") | extra)

    return reply


def thought_only() -> Reply:
    """200 with a picture that is no answer but an intermediate thought."""
    return lambda handler, asked: handler.send_json(200, _candidate([{"thought": True, **_inline(jpeg())}], "STOP"))


def words(text: str, reason: str = "STOP") -> Reply:
    """200 with text only."""
    return lambda handler, asked: handler.send_json(200, _candidate([{"text": text}], reason))


def stopped(reason: str) -> Reply:
    """200 with a candidate that was stopped before it had any content."""
    return lambda handler, asked: handler.send_json(
        200, {"candidates": [{"finishReason": reason, "index": 0}], "usageMetadata": USAGE}
    )


def prompt_blocked(reason: str) -> Reply:
    """200 without candidates: the prompt was not taken."""
    return lambda handler, asked: handler.send_json(
        200, {"promptFeedback": {"blockReason": reason}, "usageMetadata": {"promptTokenCount": 1290}}
    )


def problem(code: int, status: str, message: str, details: list[dict[str, Any]] | None = None, **headers: str) -> Reply:
    """An error as Google's APIs put it."""
    body = {"error": {"code": code, "status": status, "message": message, "details": details or []}}
    return lambda handler, asked: handler.send_json(code, body, {k.replace("_", "-"): v for k, v in headers.items()})


def quota(delay: str | None = None, **headers: str) -> Reply:
    """429, with the pause that it asks for."""
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}] if delay else []
    return problem(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", details, **headers)


def raw(body: bytes, status: int = 200) -> Reply:
    """Any bytes, called JSON."""
    return lambda handler, asked: handler.send_body(status, body)


def huge(size: int) -> Reply:
    """A body without a declared length that goes on for `size` bytes."""

    def reply(handler: "Handler", asked: Asked) -> None:
        handler.send_head(200, {"Content-Type": "application/json", "Connection": "close"})
        for _ in range(0, size, 1 << 20):
            handler.wfile.write(b" " * (1 << 20))
            handler.server_of.sent_bytes += 1 << 20

    return reply


def declares(size: int) -> Reply:
    """A body that says it is `size` bytes long."""
    return lambda handler, asked: handler.send_head(200, {"Content-Length": str(size)})


def drip(headers: bool = False) -> Reply:
    """One byte at a time, for ever; with `headers` not even the headers end."""

    def reply(handler: "Handler", asked: Asked) -> None:
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + (b"X-A: " if headers else b"\r\n")
        )
        while not handler.server_of.closing.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    return reply


def silence() -> Reply:
    """Nothing, until the server closes."""

    def reply(handler: "Handler", asked: Asked) -> None:
        handler.server_of.closing.wait()

    return reply


def cut(after: bytes = b"") -> Reply:
    """The connection ends, with part of an answer or none."""

    def reply(handler: "Handler", asked: Asked) -> None:
        if after:
            handler.send_head(200, {"Content-Type": "application/json", "Content-Length": "1000"})
            handler.wfile.write(after)

    return reply


def held(then: Reply) -> Reply:
    """Waits for `release`; `entered` says that a request is waiting."""

    def reply(handler: "Handler", asked: Asked) -> None:
        handler.server_of.entered.set()
        handler.server_of.release.wait(60)
        then(handler, asked)

    return reply


def _inline(data: bytes) -> dict[str, Any]:
    return {"inlineData": {"mimeType": "image/jpeg", "data": base64.b64encode(data).decode()}}


def _candidate(parts: list[dict[str, Any]], reason: str) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason, "index": 0}],
        "usageMetadata": USAGE,
        "modelVersion": "gemini-test",
    }


class GeminiServer:
    """The server; use it as a context manager. `url` goes into GEMINI_BASE_URL."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self.connections = 0
        self.sent_bytes = 0
        self.replies: list[Reply] = [picture()]
        self.entered, self.release, self.closing = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def will(self, *replies: Reply) -> None:
        """What it answers from now on."""
        self.replies = list(replies)

    def next_reply(self, asked: Asked) -> Reply:
        with self._lock:
            self.requests.append(asked)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.closing.set()
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    server_of: GeminiServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.server_of.connections += 1
        super().setup()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        version, models, call = urlsplit(self.path).path.strip("/").split("/", 2)  # from a proxy's client: a whole URL
        model, _, method = call.partition(":")
        if (version, models, method.partition("?")[0]) != ("v1beta", "models", "generateContent"):
            self.send_json(404, {"error": {"code": 404, "status": "NOT_FOUND", "message": self.path}})
            return
        parts = [part for content in body["contents"] for part in content["parts"]]
        asked = Asked(
            model,
            self.headers["x-goog-api-key"],
            base64.urlsafe_b64decode(next(part["inlineData"]["data"] for part in parts if "inlineData" in part)),
            next(part["text"] for part in parts if "text" in part),
            body,
        )
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has given up, or was killed
            self.server_of.next_reply(asked)(self, asked)

    def send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.send_body(status, json.dumps(body).encode(), headers)

    def send_body(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_head(
            status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        )
        self.wfile.write(body)

    def send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
