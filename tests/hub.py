"""A model hub on loopback that speaks as much of the real one's protocol as huggingface_hub 2.4.0 uses for a download.

    HEAD /{owner}/{name}/resolve/{revision}/{file}   302 to storage, with X-Repo-Commit, X-Linked-Size, X-Linked-Etag
    GET  /storage/{sha256}?signature=...             200, or 206 for a Range request
    errors: 401 and 403 GatedRepo, 401 invalid token, 404 RepoNotFound, RevisionNotFound, EntryNotFound (X-Error-Code)

Storage answers under another host name (localhost, while the hub is 127.0.0.1), as the real one's does, so a test can
see that the token stays on the hub. Every request is kept in `requests`.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import numpy as np
from safetensors.numpy import save

#: The library writes what it received in steps of 10 MiB, so only a larger file can be continued after a cut.
LIBRARY_CHUNK_BYTES = 10 * 1024 * 1024


def checkpoint_bytes(size_bytes: int = 4096, seed: int = 0) -> bytes:
    """A real safetensors file with two tensors and about `size_bytes` of noise in them."""
    noise = np.random.default_rng(seed).integers(0, 256, size_bytes // 2, dtype=np.uint8)
    return save({"encoder.weight": noise, "decoder.weight": noise[::-1].copy()})


@dataclass(frozen=True)
class Seen:
    """One request as the server saw it."""

    method: str
    path: str
    host: str
    range: str | None
    authorization: str | None


@dataclass
class Repository:
    """One repository of the hub.

    Attributes:
        commit: what every name in `branches` stands for now; asked by itself it always answers.
        token: the only token that opens a gated repository; None when it is open to all.
    """

    commit: str
    files: dict[str, bytes]
    token: str | None = None
    branches: tuple[str, ...] = ("main",)


@dataclass
class Faults:
    """What goes wrong on purpose.

    Attributes:
        cut_after: the next download ends after so many bytes without an end of the body, once.
        hold_after: downloads stop after so many bytes until `release` is set; `held` tells that one has stopped.
        corrupt: storage serves these bytes instead, while the hub goes on announcing the right hash.
        announced_size: the size in X-Linked-Size, instead of the true one.
        status: every request to the hub gets this status.
        storage_status: every request to storage gets this status.
    """

    cut_after: int | None = None
    hold_after: int | None = None
    corrupt: bytes | None = None
    announced_size: int | None = None
    status: int | None = None
    storage_status: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class Hub:
    """The server; use it as a context manager. `endpoint` goes into HF_ENDPOINT."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.requests: list[Seen] = []
        self.faults = Faults()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def downloads(self) -> list[Seen]:
        """The requests for a file's content, in order."""
        return [seen for seen in self.requests if seen.method == "GET"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.faults.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._note()
        faults = self.hub.faults
        owner, name, resolve, revision, file = (urlsplit(self.path).path.strip("/").split("/", 4) + [""] * 5)[:5]
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if faults.status is not None:
            return self._refuse(faults.status)
        if repository is None or resolve != "resolve":
            # The real hub says 401, not 404, to the nameless, so that nobody learns which private ones exist.
            return self._refuse(401, "RepoNotFound")
        if repository.token is not None:
            token = self.headers.get("Authorization")
            if token is None:
                return self._refuse(401, "GatedRepo", "Access to this model is restricted.")
            if not token.startswith("Bearer hf_"):
                return self._refuse(401, None, "Invalid credentials in Authorization header")
            if token != f"Bearer {repository.token}":
                return self._refuse(403, "GatedRepo", "You are not in the authorized list.")
        if revision not in (*repository.branches, repository.commit):
            return self._refuse(404, "RevisionNotFound")
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound")
        content = repository.files[file]
        sha256 = hashlib.sha256(content).hexdigest()
        size = len(content) if faults.announced_size is None else faults.announced_size
        self._answer(
            302,
            {
                "Location": f"http://localhost:{self.hub.port}/storage/{sha256}?signature=for-a-while",
                "X-Repo-Commit": repository.commit,
                "X-Linked-Size": str(size),
                "X-Linked-Etag": f'"{sha256}"',
                "ETag": f'"{sha256[:32]}"',
            },
        )
        return None

    def do_GET(self) -> None:
        self._note()
        sha256 = urlsplit(self.path).path.rsplit("/", 1)[-1]
        contents = [content for one in self.hub.repositories.values() for content in one.files.values()]
        found = [content for content in contents if hashlib.sha256(content).hexdigest() == sha256]
        if not found or self.hub.faults.storage_status is not None:
            return self._refuse(self.hub.faults.storage_status or 404)
        content = self.hub.faults.corrupt or found[0]
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self._answer(206 if wanted else 200, {**headers, "Content-Length": str(len(content) - start)})
        self._send(content[start:])
        return None

    def _send(self, content: bytes) -> None:
        faults = self.hub.faults
        stop = faults.cut_after if faults.cut_after is not None else faults.hold_after
        try:
            self.wfile.write(content[:stop])
            if stop is None or stop >= len(content):
                return
            self.wfile.flush()
            if faults.cut_after is not None:
                faults.cut_after = None
                self.close_connection = True
                return
            faults.held.set()
            faults.release.wait(60)
            self.wfile.write(content[stop:])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed, which some tests do on purpose

    def _note(self) -> None:
        headers = self.headers
        seen = Seen(
            self.command, self.path, headers.get("Host", ""), headers.get("Range"), headers.get("Authorization")
        )
        self.hub.requests.append(seen)

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: int, code: str | None = None, message: str | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message}
        self._answer(status, {name: value for name, value in named.items() if value is not None})
