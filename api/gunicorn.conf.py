# ruff: noqa: N999 - gunicorn looks for this name
"""How gunicorn runs the API: `gunicorn -c api/gunicorn.conf.py "api.app:create_app()"`.

One process with threads: the work is waiting, not computing, and one process keeps one pool of Redis connections, one
cap on waits and one set of metrics. gthread finished 8 of 8 requests in flight on TERM (field-notes.md section 5).
"""

import math
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from shared.errors import FatalError
from shared.logs import configure_logging
from shared.settings import load_settings

try:
    _settings = load_settings()
except FatalError as exc:
    sys.exit(str(exc))


class _JsonLogger(Logger):  # type: ignore[misc]
    """Sends gunicorn's own lines through shared.logs; the app writes the access log."""

    def setup(self, cfg: object) -> None:
        super().setup(cfg)
        configure_logging(_settings)

    def exception(self, msg: str, *args: object, **kwargs: Any) -> None:
        if isinstance(sys.exc_info()[1], BlockingIOError):  # the time that when_ready has set is over: no fault of ours
            self.info("Gave up on a client that stopped in mid-request")
        else:
            super().exception(msg, *args, **kwargs)


_host = f"[{_settings.api_host}]" if ":" in _settings.api_host else _settings.api_host
bind = f"{_host}:{_settings.api_port}"
workers = 1
worker_class = "gthread"
threads = _settings.api_threads
keepalive = 5
#: Seconds without a heartbeat of the process (not of a request) until it is restarted.
timeout = 60
#: Seconds that requests in flight get after TERM; a request that waits for its job is one of them.
graceful_timeout = math.ceil(_settings.shutdown_grace_s)
logger_class = _JsonLogger
accesslog = None
#: The control socket wants a writable home, which a container's user need not have.
control_socket_disable = True
#: The heartbeat file on a disk that may block would get the process killed.
if Path("/dev/shm").is_dir():  # noqa: S108
    worker_tmp_dir = "/dev/shm"  # noqa: S108


def post_worker_init(worker: Any) -> None:
    """End event streams and waits on TERM: they would use up the grace time, and clients ask again by themselves."""
    stop = signal.getsignal(signal.SIGTERM)

    def drain(number: int, frame: Any) -> None:
        worker.wsgi.extensions["service"].closing.set()
        if callable(stop):
            stop(number, frame)

    signal.signal(signal.SIGTERM, drain)


def when_ready(server: Any) -> None:
    """Give up on a client that stops before its headers end, too: no hook of gunicorn's comes early enough.

    So the kernel keeps the time. What is accepted has the options of what listens.
    """
    seconds, rest = divmod(_settings.upload_stall_s, 1)
    for listener in server.LISTENERS:
        limit = struct.pack("@ll", int(seconds), int(rest * 1e6))
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def pre_request(worker: object, req: Any) -> None:
    """Give up on a client that stops in mid-request: each holds a web thread for as long as it is waited for."""
    req.unreader.sock.settimeout(_settings.upload_stall_s)
