"""Jobs per second and latency through API, Redis and Celery: `python -m benchmarks.system [--starter]`.

Starts the local stack with an engine that answers at once (tests/tiny_worker.py) or with the starter weights, and sends
two-sided jobs, each of other pictures, by clients that wait for the reply. With the instant engine what remains is the
service itself: its baseline is the same job's own decode, compose and encode, called directly in this process.
"""

import http.client
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import redis
import requests
import torch
from PIL import Image

from benchmarks.report import arguments_of, bars, median_ms, percentile, table, write_json
from shared.local.redis_server import free_port
from shared.local.stack import Child, LocalStack
from tests.tiny_worker import INPUT_SIZE, paint
from worker.images import cut_out, decode, encode_png, mask_at_size, network_input

ROOT = Path(__file__).resolve().parents[1]
_BOUNDARY = "benchmark"


class BenchmarkStack(LocalStack):
    """The local stack with a network that answers at once, or the starter's; several workers have a core each."""

    def __init__(self, *arguments: Any, starter: bool = False, count: int = 1, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._module, self._count = "worker" if starter else "tests.tiny_worker", count
        self.workers: list[Child] = []

    def start_worker(self) -> None:
        self.workers = []
        for number in range(self._count):
            name, core = f"worker-{number + 1}", number % (os.cpu_count() or 1)
            own = {"WORKER_NAME": name, "WORKER_CORE": str(core)} if self._count > 1 else {}
            self.worker = self._child("worker", [sys.executable, "-m", self._module], **own)
            self._exit.callback(self.worker.stop)
            self.workers.append(self.worker)

    def wait_for_worker(self) -> None:
        super().wait_for_worker()
        while len(requests.get(f"{self.base_url}/health", timeout=10).json()["workers"]) < self._count:
            for worker in self.workers:
                worker.check()
            time.sleep(0.1)


def picture(size: int, seed: int) -> bytes:
    """A PNG of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def form(client_id: str, sides: dict[str, bytes]) -> bytes:
    """A multipart/form-data body."""
    parts = [f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="id"\r\n\r\n{client_id}\r\n'.encode()]
    for side, data in sides.items():
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{side}"; filename="{side}.png"\r\n\r\n'
        parts += [head.encode(), data, b"\r\n"]
    return b"".join((*parts, f"--{_BOUNDARY}--\r\n".encode()))


class Client(threading.Thread):
    """Sends one job after the other over one connection, each when the last has been answered."""

    def __init__(self, base_url: str, bodies: Iterable[bytes], timeout_s: float = 120) -> None:
        super().__init__(daemon=True)
        address = urlsplit(base_url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=timeout_s)
        self._bodies = bodies
        self.seconds: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for body in self._bodies:
                started = time.perf_counter()
                self._send(body)
                self.seconds.append(time.perf_counter() - started)
        except BaseException as exc:
            self.error = exc

    def _send(self, body: bytes) -> None:
        kind = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        self._connection.request("POST", "/process", body, kind)
        reply = self._connection.getresponse()
        text = reply.read()
        if reply.status != 200 or b'"succeeded"' not in text:
            raise RuntimeError(f"POST /process answered {reply.status}: {text[:500]!r}")


def run_all(clients: Sequence[Client]) -> None:
    """Run clients at the same time to their end; what went wrong for the first of them is raised."""
    for client in clients:
        client.start()
    for client in clients:
        client.join()
        if client.error is not None:
            raise client.error


class Jobs:
    """Requests of two sides, no picture twice: the result cache shall have nothing to say."""

    def __init__(self, size: int) -> None:
        self._size, self._seed = size, 0

    def sides(self) -> dict[str, bytes]:
        self._seed += 2
        return {"front": picture(self._size, self._seed), "back": picture(self._size, self._seed + 1)}

    def bodies(self, count: int) -> list[bytes]:
        return [form(f"bench-{number}", self.sides()) for number in range(count)]


def load(base_url: str, jobs: Jobs, *, clients: int, each: int) -> dict[str, float]:
    """What `clients` clients see that send `each` jobs each: jobs_per_s, p50_ms, p95_ms."""
    threads = [Client(base_url, jobs.bodies(each)) for _ in range(clients)]
    started = time.perf_counter()
    run_all(threads)
    elapsed = time.perf_counter() - started
    seconds = [value for thread in threads for value in thread.seconds]
    return {
        "jobs_per_s": len(seconds) / elapsed,
        "p50_ms": percentile(seconds, 0.5) * 1000,
        "p95_ms": percentile(seconds, 0.95) * 1000,
    }


def own_work_ms(sides: dict[str, bytes], models: tuple[str, ...] = ("rmbg", "birefnet")) -> float:
    """The job's own decode, input, compose and encode, one after the other, in this process (ms)."""

    def job() -> None:
        with torch.inference_mode():
            for data in sides.values():
                decoded = decode(data, pixel_limit=10**9)
                x = network_input(decoded, INPUT_SIZE, torch.device("cpu"))
                for model in models:
                    mask = mask_at_size(paint(model, x)[0], decoded.height, decoded.width)
                    b"".join(encode_png(cut_out(decoded, mask)))

    job()
    return median_ms(job, 20)


class CpuMeter:
    """Processor time of the stack's processes: what depends least on who else uses the machine."""

    def __init__(self, stack: BenchmarkStack) -> None:
        assert stack.api is not None
        assert stack.redis is not None
        with redis.Redis.from_url(stack.redis.url) as client:
            redis_pid = client.info("server")["process_id"]
        gunicorn = psutil.Process(stack.api.process.pid)
        self._processes = {
            "worker": [psutil.Process(worker.process.pid) for worker in stack.workers],
            "api": [gunicorn, *gunicorn.children()],
            "redis": [psutil.Process(redis_pid)],
        }

    def seconds(self) -> dict[str, float]:
        """So far, by process."""
        return {
            name: sum(sum(process.cpu_times()[:2]) for process in processes)
            for name, processes in self._processes.items()
        }


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--starter", action="store_true", help="the starter weights in place of the instant engine")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels (64; 1024 with --starter)")
    parser.add_argument("--jobs", type=int, help="jobs per row (200; 8 with --starter)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes, on one core each where several (1)")
    parser.add_argument("--clients", default=None, help="comma-separated (1,4,16; 1,4 with --starter)")
    arguments = parser.parse_args()
    size = arguments.size or (1024 if arguments.starter else 64)
    total = arguments.jobs or (8 if arguments.starter else 200)
    clients = [int(word) for word in (arguments.clients or ("1,4" if arguments.starter else "1,4,16")).split(",")]
    jobs = Jobs(size)
    own_ms = own_work_ms(jobs.sides())
    rows: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "MODEL_PROFILE": "starter", "OUTPUTS_DIR": f"{folder}/outputs"}
        place: dict[str, Any] = {"host": "127.0.0.1", "port": free_port(), "run_dir": Path(folder)}
        with BenchmarkStack(ROOT, env, starter=arguments.starter, count=arguments.workers, **place) as stack:
            stack.start()
            load(stack.base_url, jobs, clients=2, each=2 if arguments.starter else 20)  # warm
            meter = CpuMeter(stack)
            for count in clients:
                each = max(1, total // count)
                before = meter.seconds()
                rows[count] = load(stack.base_url, jobs, clients=count, each=each)
                used = {name: value - before[name] for name, value in meter.seconds().items()}
                rows[count] |= {f"{name}_cpu_ms": value / (count * each) * 1000 for name, value in used.items()}
    engine = "starter weights" if arguments.starter else "instant engine"
    engine += f", {arguments.workers} workers" if arguments.workers > 1 else ""
    table(
        f"A job of 2 sides x 2 models at {size} px through API, Redis and Celery, {engine}",
        (
            "clients",
            "jobs/s",
            "p50 ms",
            "p95 ms",
            "p50 over its own pixels, ms",
            "CPU ms a job: worker",
            "API",
            "Redis",
        ),
        [
            (
                str(count),
                f"{row['jobs_per_s']:.1f}",
                f"{row['p50_ms']:.1f}",
                f"{row['p95_ms']:.1f}",
                f"{row['p50_ms'] - own_ms:.1f}",
                *(f"{row[f'{name}_cpu_ms']:.1f}" for name in ("worker", "api", "redis")),
            )
            for count, row in rows.items()
        ],
    )
    print(f"\nits own decode, compose and encode, called directly: {own_ms:.1f} ms")
    numbers: dict[str, Any] = {"engine": engine, "size": size, "own_ms": own_ms, "clients": rows}
    write_json(arguments.json, numbers)
    bars(
        arguments.plot,
        f"A job of 2 sides x 2 models at {size} px, {engine}",
        "ms",
        {f"{count} clients, {name}": row[f"{name}_ms"] for count, row in rows.items() for name in ("p50", "p95")}
        | {"its own pixels": own_ms},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
