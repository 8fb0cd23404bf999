"""Four cutouts by this service and by rembg's HTTP server: `python -m benchmarks.rembg --rembg PATH`.

The same network for both: the starter's `rmbg`, exported to ONNX in the place where rembg looks for `birefnet-general`
(requirements/benchmarks.txt has what exports it). rembg belongs into an environment of its own; PATH is its command
there. It shrinks to 1024 px first, as for that model, and the exported network goes on from there. Each client sends
two pictures through two models: one job here, four requests there. rembg cleans no edges and inspects nothing by
default.
"""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import requests
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.report import arguments_of, table, write_json
from benchmarks.system import ROOT, BenchmarkStack, CpuMeter, Jobs
from shared.local.redis_server import free_port
from worker.images import decode
from worker.nets import CONFIGS, load_checkpoint

#: What rembg calls the model whose place ours takes, and the size of its input.
_MODEL, _INPUT_SIZE = "birefnet-general", 1024
_START_S = 60


class _At1024(nn.Module):
    """The starter's network behind an input of rembg's size."""

    def __init__(self) -> None:
        super().__init__()
        config = CONFIGS["starter"]
        self._network = load_checkpoint(ROOT / "models" / "starter" / "rmbg.safetensors", config)
        self._size = (config.input_size,) * 2

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, 1024, 1024), normalised -> (1, 1, S, S) logits."""
        logits: Tensor = self._network(F.interpolate(x, size=self._size, mode="bilinear", align_corners=False))
        return logits


def export(path: Path) -> None:
    """Write the network as an ONNX file."""
    example = torch.zeros(1, 3, _INPUT_SIZE, _INPUT_SIZE)
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings(), torch.inference_mode():
        # The exporter by tracing takes shapes for tensors, which the network computes with.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _At1024().eval(), (example,), str(path), dynamo=True, external_data=False, optimize=False, verbose=False
        )


class Rembg:
    """rembg's server; a context manager."""

    def __init__(self, command: Path, folder: Path) -> None:
        export(folder / "models" / _MODEL / f"{_MODEL}.onnx")
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/remove"
        env = {**os.environ, "REMBG_HOME": str(folder), "MODEL_CHECKSUM_DISABLED": "1", "GRADIO_ANALYTICS_ENABLED": "0"}
        with (folder / "log").open("wb") as log:
            arguments = [str(command), "s", "--host", "127.0.0.1", "--port", str(port)]
            self._process = subprocess.Popen(arguments, env=env, stdout=log, stderr=subprocess.STDOUT)
        self._log = folder / "log"

    def __enter__(self) -> "Rembg":
        deadline = time.monotonic() + _START_S
        while True:
            try:
                requests.get(self._url.rpartition("/api")[0], timeout=5)
                return self
            except requests.ConnectionError as exc:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"rembg does not answer:\n{self._log.read_text()[-2000:]}") from exc
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def cutout(self, data: bytes) -> bytes:
        """The PNG of one picture."""
        reply = requests.post(self._url, files={"file": data}, data={"model": _MODEL}, timeout=300)
        reply.raise_for_status()
        return reply.content

    def four(self, sides: dict[str, bytes]) -> None:
        for data in sides.values():
            for _ in range(2):
                self.cutout(data)

    def cpu_s(self) -> float:
        return float(sum(psutil.Process(self._process.pid).cpu_times()[:2]))


class Ours:
    """This service's local stack, with starter weights."""

    def __init__(self, stack: BenchmarkStack) -> None:
        self._stack, self._meter = stack, CpuMeter(stack)

    def job(self, sides: dict[str, bytes]) -> dict[str, Any]:
        files = {side: (f"{side}.png", data) for side, data in sides.items()}
        reply = requests.post(f"{self._stack.base_url}/process", data={"id": "rembg"}, files=files, timeout=300)
        reply.raise_for_status()
        result: dict[str, Any] = reply.json()
        return result

    def cpu_s(self) -> float:
        return sum(self._meter.seconds().values())


def timed(
    work: Callable[[dict[str, bytes]], Any], cpu_s: Callable[[], float], jobs: Jobs, clients: int, each: int
) -> dict[str, float]:
    """Median seconds until a client has its four cutouts, cutouts per second, and CPU seconds for four."""
    todo = [[jobs.sides() for _ in range(each)] for _ in range(clients)]
    seconds: list[float] = []

    def client(mine: list[dict[str, bytes]]) -> None:
        for sides in mine:
            began = time.perf_counter()
            work(sides)
            seconds.append(time.perf_counter() - began)

    cpu, began = cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, todo))
    elapsed = time.perf_counter() - began
    count = clients * each
    return {"median_s": median(seconds), "per_s": 4 * count / elapsed, "cpu_s": (cpu_s() - cpu) / count}


def alpha_of(data: bytes) -> npt.NDArray[np.float32]:
    alpha = decode(data, pixel_limit=10**9).alpha
    assert alpha is not None
    return np.asarray(alpha / 255, np.float32)


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--rembg", type=Path, required=True, help="rembg's command")
    parser.add_argument("--size", type=int, default=1024, help="side of the pictures in pixels")
    parser.add_argument("--jobs", type=int, default=4, help="jobs of each client")
    arguments = parser.parse_args()
    jobs, rows = Jobs(arguments.size), []
    numbers: dict[str, Any] = {"size": arguments.size}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "MODEL_PROFILE": "starter", "OUTPUTS_DIR": f"{folder}/outputs"}
        with (
            Rembg(arguments.rembg, Path(folder) / "rembg") as rembg,
            BenchmarkStack(ROOT, env, starter=True, host="127.0.0.1", port=free_port(), run_dir=Path(folder)) as stack,
        ):
            stack.start()
            ours = Ours(stack)
            sides = jobs.sides()
            result = ours.job(sides)  # warm, both, and the same masks
            mine = alpha_of(requests.get(result["front_rmbg"], timeout=30).content)
            numbers["difference"] = float(np.abs(mine - alpha_of(rembg.cutout(sides["front"]))).mean())
            for clients in (1, 4):
                for name, work, cpu_s in (("rembg", rembg.four, rembg.cpu_s), ("ours", ours.job, ours.cpu_s)):
                    row = timed(work, cpu_s, jobs, clients, arguments.jobs)
                    numbers[f"{name}/{clients}"] = row
                    figures = (f"{row['median_s']:.2f}", f"{row['per_s']:.2f}", f"{row['cpu_s']:.2f}")
                    rows.append((str(clients), name, *figures))
    title = f"Two pictures of {arguments.size} px through two networks of one kind"
    table(title, ("clients", "service", "median s for four cutouts", "cutouts/s", "CPU s for four"), rows)
    print(f"\nmean difference of the alpha of one picture: {numbers['difference']:.4f} of 1")
    write_json(arguments.json, numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
