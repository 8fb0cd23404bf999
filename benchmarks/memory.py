"""How much memory a worker takes when it is full of large pictures: `python -m benchmarks.memory [--jobs 16]`.

Starts the local stack, sends jobs of two 24-megapixel sides each all at once, and watches the worker's resident memory
from outside, and its own report (the device's memory, on CUDA). The baseline of the same run is the idle worker. What
bounds the rest: PIXELS_IN_FLIGHT_MP for pictures being decoded or composed, PICTURE_CACHE_MB for those that are kept.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.pixels import design
from benchmarks.report import arguments_of, bars, table, write_json
from benchmarks.system import BenchmarkStack, Client, form, run_all
from shared.local.redis_server import free_port
from worker.heartbeat import HEARTBEAT_S
from worker.images import encode_png

ROOT = Path(__file__).resolve().parents[1]


class Watch(threading.Thread):
    """Samples a process's resident memory until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self._stop_it = psutil.Process(pid), threading.Event()
        self.samples_mb: list[float] = []

    def run(self) -> None:
        while not self._stop_it.wait(0.05):
            self.samples_mb.append(self._process.memory_info().rss / 1e6)

    def stop(self) -> float:
        """The highest value (MB)."""
        self._stop_it.set()
        self.join()
        return max(self.samples_mb)


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--size", default="4500x5400", help="width x height of a side")
    parser.add_argument("--jobs", type=int, default=16, help="jobs at once")
    parser.add_argument("--starter", action="store_true", help="the starter weights in place of the instant engine")
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split("x"))
    picture, _ = design(width, height)
    side = b"".join(encode_png(picture.rgb))
    pixels_mp = width * height / 1e6
    del picture
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "MODEL_PROFILE": "starter",
            "OUTPUTS_DIR": f"{folder}/outputs",
            "SYNC_WAIT_S": "600",
            "SYNC_WAIT_LIMIT_S": "600",
            "RESULT_CACHE_TTL_S": "0",  # the same picture again and again shall be computed again and again
        }
        place: dict[str, Any] = {"host": "127.0.0.1", "port": free_port(), "run_dir": Path(folder)}
        with BenchmarkStack(ROOT, env, starter=arguments.starter, **place) as stack:
            stack.start()
            assert stack.worker is not None
            watch = Watch(stack.worker.process.pid)
            watch.start()
            time.sleep(1)
            idle_mb = max(watch.samples_mb)
            started = time.perf_counter()
            clients = [
                Client(stack.base_url, [form(f"memory-{number}", {"front": side, "back": side})], timeout_s=900)
                for number in range(arguments.jobs)
            ]
            run_all(clients)
            seconds = time.perf_counter() - started
            peak_mb = watch.stop()
            time.sleep(HEARTBEAT_S + 1)  # the report that comes next is of the whole load
            report: dict[str, Any] = requests.get(f"{stack.base_url}/health", timeout=10).json()["workers"][0]
    rows = {"idle, models loaded": idle_mb, "peak": peak_mb, "peak over idle": peak_mb - idle_mb}
    memory = report["memory"]
    if memory["device_peak_bytes"] is not None:
        rows["device, peak"] = memory["device_peak_bytes"] / 1e6
    table(
        f"{arguments.jobs} jobs at once, two sides of {pixels_mp:.1f} megapixels each, two models ({seconds:.0f} s)",
        ("resident memory of the worker", "MB"),
        [(name, f"{value:.0f}") for name, value in rows.items()],
    )
    print(f"\nthe worker's own report: {memory}")
    write_json(arguments.json, {"jobs": arguments.jobs, "megapixels": pixels_mp, "mb": rows, "seconds": seconds})
    bars(arguments.plot, f"Worker memory, {arguments.jobs} jobs of 2 x {pixels_mp:.0f} MP at once", "MB", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
