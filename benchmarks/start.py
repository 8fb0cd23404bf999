"""From process start to ready, in parts: `python -m benchmarks.start [--profile starter] [--runs 5]`.

Starts real workers on a private Redis, one after the other, and reads the parts from the times of their log lines. The
baseline of the same run is `import torch` in a process of its own: no worker can start faster than that.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.report import arguments_of, bars, table, write_json
from shared.local.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE_S = 600
_READY = "All models initialized successfully"


def start_once(env: dict[str, str]) -> dict[str, float]:
    """Seconds of each part of one worker's start."""
    started = time.time()
    worker = subprocess.Popen(
        [sys.executable, "-m", "worker"], cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert worker.stderr is not None
    parts: dict[str, float] = {}
    last = started
    loading_s = 0.0
    other: list[str] = []
    try:
        for line in worker.stderr:
            if not line.startswith(b"{"):
                other.append(line.decode(errors="replace"))  # a library's warning, or why Python ended
                continue
            event = json.loads(line)
            now = datetime.fromisoformat(event["timestamp"]).timestamp()
            if event["event"] == "worker_starting":
                parts["Python and imports"] = now - started
            elif event["event"] == "model_loaded":
                parts[f"{event['model']}: load"] = event["load_s"]
                parts[f"{event['model']}: warm-up"] = event["warm_up_s"]
                loading_s += event["load_s"] + event["warm_up_s"]
            elif event["event"] == _READY:
                parts["Redis, folders, the rest"] = now - last - loading_s
                parts["total"] = now - started
                return parts
            if event["event"] == "worker_starting":
                last = now
        raise RuntimeError(f"the worker ended with status {worker.wait(10)}:\n{''.join(other[-20:])}")
    finally:
        worker.terminate()
        worker.stderr.close()
        worker.wait(60)


def import_torch() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--profile", default="starter", choices=("starter", "full", "auto"))
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with RedisServer() as server, tempfile.TemporaryDirectory() as folder:
        env = {
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            "MODEL_PROFILE": arguments.profile,
            "OUTPUTS_DIR": folder,
            "REDIS_URL": server.url,
            "LOG_FORMAT": "json",
        }
        start_once(env)  # fills the page cache
        runs = [start_once(env) for _ in range(arguments.runs)]
        torch_s = statistics.median(import_torch() for _ in range(arguments.runs))
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    table(
        f"Start of a worker, {arguments.profile} weights, median of {arguments.runs}",
        ("part", "s"),
        [(name, f"{value:.2f}") for name, value in medians.items()]
        + [("baseline: import torch alone", f"{torch_s:.2f}")],
    )
    write_json(arguments.json, {"profile": arguments.profile, "seconds": medians, "import_torch_s": torch_s})
    bars(arguments.plot, "Start of a worker until its models are ready", "s", {**medians, "import torch": torch_s})
    return 0


if __name__ == "__main__":
    sys.exit(main())
