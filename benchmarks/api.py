"""How the API behaves when many ask at once: `python -m benchmarks.api [--json]`.

A real gunicorn with the default settings, a real worker and Redis on loopback; only the network is the tests' tiny
engine, which answers at once, so what is measured is the service around it. Three questions:

- how long does `POST /process` with `Prefer: respond-async` take, from one client and from eight at once;
- do 200 clients that wait at the same time all get their own result, and do other routes stay quick meanwhile (the
  engine is held until all 200 wait);
- does one request sent 50 times with one Idempotency-Key in the same instant make one job.
"""

import argparse
import base64
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from shared.settings import load_settings
from tests.processes import Process, python, wait_for
from tests.redis_server import RedisServer, free_port

_TIMEOUT_S = 120
_CLIENTS = 8
_SAME = 50


class Stack:
    """API, worker with the tiny engine and Redis."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.gate = folder / "gate"
        self.gate.mkdir()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._env = {
            "REDIS_URL": redis.url,
            "OUTPUTS_DIR": str(folder / "outputs"),
            "BASE_URL": self.url,
            "API_PORT": str(port),
            "TINY_GATE": str(self.gate),
            "LOG_LEVEL": "WARNING",
        }
        self._logs = folder / "logs"
        self.api = self._start("api", "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.app:create_app()")
        self.worker = self._start("worker", "-m", "tests.tiny_worker")

    def _start(self, name: str, *arguments: str) -> Process:
        return python(name, *arguments, env=self._env, log_dir=self._logs)

    def is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/ready", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def metric(self, name: str) -> float:
        lines = requests.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def drain(self) -> None:
        """Return when every job has ended."""
        url = f"{self.url}/jobs?limit=1&status=queued&status=preparing&status=processing"
        wait_for("the queue", lambda: not requests.get(url, timeout=30).json()["jobs"], self.api, self.worker)

    def memory_mb(self) -> float:
        """Resident memory of the API's processes."""
        total_kb = 0
        for pid in (self.api.popen.pid, *_children(self.api.popen.pid)):
            status = Path(f"/proc/{pid}/status").read_text()
            total_kb += int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        return total_kb / 1024

    def close(self) -> None:
        self.api.kill()
        self.worker.kill()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def picture(seed: int) -> str:
    """A small PNG that is different for every seed, as a data: URI."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def body(seed: int) -> dict[str, Any]:
    return {"id": seed, "output": {"front": picture(2 * seed), "back": picture(2 * seed + 1)}}


def timed(call: Callable[[], requests.Response]) -> tuple[requests.Response, float]:
    started = time.perf_counter()
    return call(), (time.perf_counter() - started) * 1000


def spread(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {
        "median_ms": round(statistics.median(ordered), 1),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
        "slowest_ms": round(ordered[-1], 1),
    }


def measure_async(stack: Stack, requests_sent: int, clients: int) -> dict[str, Any]:
    """Time of POST /process that does not wait."""
    local = threading.local()

    def send(seed: int) -> tuple[int, float]:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        reply, milliseconds = timed(
            lambda: local.session.post(
                f"{stack.url}/process", json=body(seed), headers={"Prefer": "respond-async"}, timeout=_TIMEOUT_S
            )
        )
        return reply.status_code, milliseconds

    first = 10_000 * clients
    with ThreadPoolExecutor(clients) as pool:
        outcomes = list(pool.map(send, range(first, first + requests_sent)))
    stack.drain()
    statuses = Counter(str(status) for status, _ in outcomes)
    return {"requests": requests_sent, "statuses": dict(statuses), **spread([ms for _, ms in outcomes])}


@contextmanager
def probing(stack: Stack) -> Iterator[list[float]]:
    """Ask another route again and again inside the block; its times in ms."""
    times: list[float] = []
    stop = threading.Event()

    def probe() -> None:
        with requests.Session() as session:
            while not stop.wait(0.02):
                times.append(timed(lambda: session.get(f"{stack.url}/jobs?limit=1", timeout=_TIMEOUT_S))[1])

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield times
    finally:
        stop.set()
        thread.join()


def measure_waits(stack: Stack, clients: int) -> dict[str, Any]:
    """Clients that all wait at the same time, and another route meanwhile."""
    holds = [stack.gate / f"hold-{model}" for model in ("rmbg", "birefnet")]
    for hold in holds:
        hold.touch()

    def send(seed: int) -> requests.Response:
        return requests.post(f"{stack.url}/process?wait=100", json=body(seed), timeout=_TIMEOUT_S)

    bodies_first = 500_000
    expected = min(clients, load_settings().max_sync_waits)
    with ThreadPoolExecutor(clients) as pool, probing(stack) as probes:
        waiting = [pool.submit(send, seed) for seed in range(bodies_first, bodies_first + clients)]
        wait_for("all to wait", lambda: stack.metric("cutout_sync_waits") >= expected, stack.api, stack.worker)
        del probes[:]  # what counts is the time with all of them waiting, and of the answers
        time.sleep(2)
        while_waiting = list(probes)
        memory_mb = stack.memory_mb()
        started = time.perf_counter()
        for hold in holds:
            hold.unlink()
        replies = [future.result(_TIMEOUT_S) for future in waiting]
        done_s = time.perf_counter() - started
        while_answering = probes[len(while_waiting) :]
    stack.drain()
    own = sum(reply.ok and reply.json()["id"] == seed for seed, reply in enumerate(replies, bodies_first))
    return {
        "clients": clients,
        "statuses": dict(Counter(str(reply.status_code) for reply in replies)),
        "own_answers": own,
        "jobs": len({reply.json().get("job_id") for reply in replies}),
        "seconds_from_release": round(done_s, 2),
        "other_route_while_waiting": spread(while_waiting),
        "other_route_while_answering": spread(while_answering or [0.0]),
        "api_memory_mb": round(memory_mb),
    }


def measure_same(stack: Stack) -> dict[str, Any]:
    """One request, many times in one instant, with one key."""
    before = len(requests.get(f"{stack.url}/jobs?id=777777&limit=100", timeout=30).json()["jobs"])
    barrier = threading.Barrier(_SAME)

    def send(_: int) -> requests.Response:
        barrier.wait()
        headers = {"Idempotency-Key": "benchmark"}
        return requests.post(f"{stack.url}/process", json=body(777_777), headers=headers, timeout=_TIMEOUT_S)

    with ThreadPoolExecutor(_SAME) as pool:
        replies = list(pool.map(send, range(_SAME)))
    jobs = len(requests.get(f"{stack.url}/jobs?id=777777&limit=100", timeout=30).json()["jobs"]) - before
    return {"requests": _SAME, "statuses": dict(Counter(str(reply.status_code) for reply in replies)), "jobs": jobs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="requests that do not wait, for each measurement")
    parser.add_argument("--clients", type=int, default=200, help="clients that wait at once")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    settings = load_settings()
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis:
        stack = Stack(Path(folder), redis)
        try:
            wait_for("the stack", stack.is_ready, stack.api, stack.worker)
            measure_async(stack, 20, 1)  # connections, imports
            rows = {
                "cpus": os.cpu_count(),
                "api_threads": settings.api_threads,
                "max_sync_waits": settings.max_sync_waits,
                "respond_async_one_client": measure_async(stack, arguments.requests, 1),
                f"respond_async_{_CLIENTS}_clients": measure_async(stack, arguments.requests, _CLIENTS),
                "waiting_at_once": measure_waits(stack, arguments.clients),
                "one_key_at_once": measure_same(stack),
            }
        finally:
            stack.close()
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for name, value in rows.items():
        if not isinstance(value, dict):
            print(f"{name:34} {value}")
            continue
        print(name)
        for part, figure in value.items():
            print(f"  {part:32} {figure if not isinstance(figure, dict) else json.dumps(figure)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
