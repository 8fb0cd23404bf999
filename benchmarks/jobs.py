"""How long a job takes through the whole local stack: `python -m benchmarks.jobs [--runs 10]`.

Starts Redis, worker and API as `make local` does, sends the two sample designs as one job again and again, and prints
medians as a table and JSON. The baseline of the same run is the sum of its four cells' own seconds: what the same work
would take one cell after the other.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from shared.local.client import send_job
from shared.local.redis_server import free_port
from shared.local.stack import LocalStack

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "tests" / "data" / "samples"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--profile", default="starter", choices=("starter", "full", "auto"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "MODEL_PROFILE": arguments.profile, "OUTPUTS_DIR": f"{folder}/outputs"}
        with LocalStack(ROOT, env, host="127.0.0.1", port=free_port(), run_dir=Path(folder)) as stack:
            started = time.perf_counter()
            stack.start()
            start_s = time.perf_counter() - started
            first_s, replies, seconds = 0.0, [], []
            for run in range(arguments.runs + 1):
                reply, elapsed = send_job(stack.base_url, SAMPLES / "front.png", SAMPLES / "back.jpg", f"bench-{run}")
                if run:
                    replies.append(reply)
                    seconds.append(elapsed)
                else:
                    first_s = elapsed
    rows = {
        "start of the stack, models ready": start_s,
        "first job": first_s,
        "warm job, median": statistics.median(seconds),
        "warm job, slowest": max(seconds),
        "  preparing both sides, median": statistics.median(
            max(r["timings"]["prepare_front_seconds"], r["timings"]["prepare_back_seconds"]) for r in replies
        ),
        "  its four cells one after the other, median": statistics.median(
            sum(cell["seconds"] for cell in r["cells"].values()) for r in replies
        ),
    }
    for name, value in rows.items():
        print(f"{name:46} {value:7.2f} s")
    print(json.dumps({"runs": arguments.runs, "profile": arguments.profile, "cpus": os.cpu_count(), **rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
