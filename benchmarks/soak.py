"""Does anything grow? `python -m benchmarks.soak records|memory [--jobs N]`.

    records  many small jobs with short lifetimes (60 s): Redis' memory and keys over the run (10,000 jobs)
    memory   jobs from 64 px to 5400 px, one side, two models: resident memory of API and worker (2,000 jobs)

Both run the local stack with an engine that answers at once, so the network's own memory is not in the figures, and
without the result cache, so every job is computed. The baseline is the same run's earlier part: what is flat has as
much at the end as after the warm-up.
"""

import math
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import redis

from benchmarks.report import arguments_of, lines, table, write_json
from benchmarks.system import ROOT, BenchmarkStack, Client, form, picture, run_all
from shared.local.redis_server import free_port

#: Sides of the pictures (px) and how many of a hundred jobs have each. Mostly small, or the run would take hours.
SIZES = {64: 30, 256: 25, 512: 20, 1024: 14, 2048: 7, 3600: 3, 5400: 1}
_CLIENTS = 4
_LIFETIME_S = 60
_SAMPLE_S = 0.5

#: What makes two keys of one kind differ: the ids in their names.
_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|soak\d+-\d+")

Sample = dict[str, float]


class Sampler(threading.Thread):
    """Takes a sample every half second until it is stopped."""

    def __init__(self, measure: Callable[[], Sample]) -> None:
        super().__init__(daemon=True)
        self._measure, self._stop_it = measure, threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        started = time.monotonic()
        while not self._stop_it.wait(_SAMPLE_S):
            self.samples.append({"seconds": time.monotonic() - started, **self._measure()})

    def stop(self) -> list[Sample]:
        self._stop_it.set()
        self.join()
        return self.samples


class Measure:
    """What the parts of a stack hold now."""

    def __init__(self, stack: BenchmarkStack, clients: Sequence[Client]) -> None:
        assert stack.worker is not None
        assert stack.api is not None
        assert stack.redis is not None
        gunicorn = psutil.Process(stack.api.process.pid)
        self._worker = psutil.Process(stack.worker.process.pid)
        self._api = [gunicorn, *gunicorn.children()]
        self._redis = redis.Redis.from_url(stack.redis.url)
        self._clients = clients

    def __call__(self) -> Sample:
        return {
            "jobs": sum(len(client.seconds) for client in self._clients),
            "worker_mb": self._worker.memory_info().rss / 1e6,
            "api_mb": sum(process.memory_info().rss for process in self._api) / 1e6,
            "redis_mb": self._redis.info("memory")["used_memory"] / 1e6,
            "redis_keys": self._redis.dbsize(),
        }

    def keys_by_kind(self) -> dict[str, int]:
        """How many keys there are of each kind: names without ids."""
        kinds = Counter(_ID.sub("*", key.decode()) for key in self._redis.scan_iter(count=1000))
        return dict(sorted(kinds.items()))


class Bodies:
    """The requests of one client, made when they are sent: thousands of large ones would not fit into memory."""

    def __init__(self, name: str, pictures: Sequence[bytes], choice: Sequence[int]) -> None:
        self._name, self._pictures, self._choice = name, pictures, choice

    def __iter__(self) -> Iterator[bytes]:
        for number, index in enumerate(self._choice):
            yield form(f"{self._name}-{number}", {"front": self._pictures[index]})


def run(
    jobs: int, sizes: Mapping[int, int], env: Mapping[str, str], quiet_s: float
) -> tuple[list[Sample], dict[str, int]]:
    """The samples of a run, and the keys that Redis has `quiet_s` after its last job.

    Args:
        sizes: side of the pictures (px) -> its share, as `SIZES`.
        env: settings of the stack.
    """
    pictures = [picture(size, seed) for seed, size in enumerate(sizes)]
    shares = np.array(list(sizes.values()), float)
    choice = np.random.default_rng(0).choice(len(pictures), size=jobs, p=shares / shares.sum()).tolist()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            **os.environ,
            "OUTPUTS_DIR": f"{folder}/outputs",
            "RESULT_CACHE_TTL_S": "0",
            "SYNC_WAIT_S": "600",
            "SYNC_WAIT_LIMIT_S": "600",
            **env,
        }
        with BenchmarkStack(ROOT, settings, host="127.0.0.1", port=free_port(), run_dir=Path(folder)) as stack:
            stack.start()
            clients = [
                Client(stack.base_url, Bodies(f"soak{n}", pictures, choice[n::_CLIENTS]), timeout_s=900)
                for n in range(_CLIENTS)
            ]
            measure = Measure(stack, clients)
            sampler = Sampler(measure)
            sampler.start()
            run_all(clients)
            time.sleep(quiet_s)
            return sampler.stop(), measure.keys_by_kind()


def between(samples: Sequence[Sample], what: str, first: float, last: float) -> float:
    """The median of a quantity between two shares (0..1) of the jobs."""
    jobs = max(sample["jobs"] for sample in samples)
    busy = [sample for sample in samples if sample["jobs"] < jobs]  # what comes after the last job is another matter
    chosen = [sample[what] for sample in busy if first * jobs <= sample["jobs"] <= last * jobs]
    return median(chosen or [math.nan])  # a short run may have no sample in between


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("what", choices=("records", "memory"))
    parser.add_argument("--jobs", type=int, help="10000 for records, 2000 for memory")
    arguments = parser.parse_args()
    is_records = arguments.what == "records"
    jobs = arguments.jobs or (10_000 if is_records else 2_000)
    lifetimes = {"JOB_TTL_S": str(_LIFETIME_S), "SOURCE_TTL_S": "0"}
    if is_records:
        samples, keys = run(jobs, {64: 1}, lifetimes, quiet_s=_LIFETIME_S + 15)
        columns = ("redis_mb", "redis_keys")
    else:
        samples, keys = run(jobs, SIZES, {"JOB_TTL_S": "600"}, quiet_s=5)
        columns = ("worker_mb", "api_mb")
    seconds = samples[-1]["seconds"]
    parts = [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.7, 0.8), (0.9, 1.0)]
    table(
        f"{jobs} jobs in {seconds:.0f} s ({arguments.what})",
        ("median over jobs", *(f"{first * jobs:.0f}-{last * jobs:.0f}" for first, last in parts), "largest", "last"),
        [
            (
                what,
                *(f"{between(samples, what, *part):.1f}" for part in parts),
                f"{max(sample[what] for sample in samples):.1f}",
                f"{samples[-1][what]:.1f}",
            )
            for what in ("redis_mb", "redis_keys", "worker_mb", "api_mb")
        ],
    )
    print("\nkeys at the end:", keys)
    write_json(arguments.json, {"jobs": jobs, "seconds": seconds, "samples": samples, "keys": keys})
    lines(
        arguments.plot,
        f"{jobs} jobs, {'records live 60 s' if is_records else '64 px to 5400 px'}",
        "jobs done",
        [sample["jobs"] for sample in samples],
        {what: [sample[what] for sample in samples] for what in columns},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
