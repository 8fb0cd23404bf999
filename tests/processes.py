"""Child processes of tests: started with a log, killed at the end, their logs shown when something takes too long."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from celery import Celery

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")


class Process:
    """One process under test; a context manager that kills it at the end."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], log_dir: Path) -> None:
        self.log_path = log_dir / f"{name}-{time.monotonic_ns()}.log"
        log_dir.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """As `kill -9`, and wait until it is gone."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(10)

    def terminate(self, timeout_s: float = 30) -> int:
        """As `kill -TERM`; the exit status."""
        self.popen.terminate()
        return self.popen.wait(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


def python(name: str, *arguments: str, env: Mapping[str, str], log_dir: Path) -> Process:
    """`python <arguments>` with this interpreter, in the project's folder."""
    return Process(name, [sys.executable, *arguments], env, log_dir)


def wait_for(what: str, condition: Callable[[], T], *processes: Process, timeout_s: float = 60) -> T:
    """Poll until the condition is true and return its value; on time-out or a process' end, fail with the logs."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        dead = [process for process in processes if process.popen.poll() is not None]
        if dead or time.monotonic() > deadline:
            logs = "\n".join(f"--- {process.log_path.name}\n{process.log[-6000:]}" for process in processes)
            reason = f"a process ended ({dead[0].popen.returncode})" if dead else f"{timeout_s:.0f} s passed"
            raise AssertionError(f"{reason} while waiting for {what}\n{logs}")
        time.sleep(0.02)


def ask_for_events(flower: Celery, worker: Process) -> None:
    """Have a worker report its events, as Flower does; again when it did not listen yet: nobody keeps a broadcast."""
    wait_for(
        "a worker that hears broadcasts",
        lambda: flower.control.enable_events(reply=True, timeout=2, limit=1),
        worker,
    )
