"""What Celery takes for a job in which nothing is done: `python -m benchmarks.chord [--jobs 300]`.

The six tasks of a job (plan, a chord of four cells, assemble) with empty bodies: no pictures, no records, no events.
Once with Celery and kombu as they come, once with the worker's own transport, result backend and chord. The baseline is
the first; what a real job takes beyond the second (`python -m benchmarks.system`) is the service's own.
"""

import contextlib
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import redis
from celery import Celery, chord, signals

from benchmarks.report import arguments_of, table, write_json
from shared import messages
from shared.local.redis_server import RedisServer
from shared.settings import Settings, load_settings
from worker.affinity import share_a_core
from worker.app import make_worker_app
from worker.tasks import register_tasks

ROOT = Path(__file__).resolve().parents[1]
_KINDS = ("stock", "ours")
_PATIENCE_S = 60


class EmptyPipeline:
    """Steps in which nothing is done but to say that the last of them was reached."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def prepare(self, job_id: str) -> list[tuple[str, str]]:
        return [(side, model) for side in ("front", "back") for model in ("rmbg", "birefnet")]

    def submitted(self, job_id: str) -> None:
        pass

    def cell(self, job_id: str, side: str, model: str) -> dict[str, str]:
        return {"status": "succeeded"}

    def assemble(self, job_id: str) -> None:
        self._client.lpush(f"done:{job_id}", "1")


class EmptyGuard:
    def step(self, job_id: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


def register_stock_tasks(app: Celery, pipeline: EmptyPipeline) -> None:
    """The same tasks as Celery's documentation would have them."""

    @app.task(name=messages.PLAN, ignore_result=True, shared=False)  # type: ignore[untyped-decorator]
    def plan(job_id: str, request_id: str) -> None:
        ids = {"job_id": job_id, "request_id": request_id}
        cells = [cell.s(side=side, model=model, **ids) for side, model in pipeline.prepare(job_id)]
        chord(cells, assemble.s(**ids)).apply_async()

    @app.task(name=messages.CELL, shared=False)  # type: ignore[untyped-decorator]
    def cell(job_id: str, request_id: str, side: str, model: str) -> str:
        return pipeline.cell(job_id, side, model)["status"]

    @app.task(name=messages.ASSEMBLE, ignore_result=True, shared=False)  # type: ignore[untyped-decorator]
    def assemble(outcomes: list[str], job_id: str, request_id: str) -> None:
        pipeline.assemble(job_id)


def run_worker(kind: str, settings: Settings) -> None:
    """A worker with empty tasks, until it is told to stop."""
    signals.setup_logging.connect(lambda **_: None, weak=False)
    pipeline: Any = EmptyPipeline(redis.Redis.from_url(settings.redis_url.get_secret_value()))
    guard: Any = EmptyGuard()
    if kind == "stock":
        app = messages.make_celery(settings, "worker")
        register_stock_tasks(app, pipeline)
    else:
        app = make_worker_app(settings)
        register_tasks(app, pipeline, guard)
        share_a_core(settings.worker_core)
    app.Worker(
        pool="threads",
        concurrency=settings.worker_threads,
        queues=[messages.CELL_QUEUE, messages.QUEUE],
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    ).start()


@contextlib.contextmanager
def worker(kind: str, url: str) -> Iterator[psutil.Process]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.chord", "--worker", kind, "--redis", url]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def cpu_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def measure(kind: str, server: RedisServer, settings: Settings, *, clients: int, jobs: int) -> dict[str, float]:
    """CPU ms a job of a worker and of Redis, with so many clients that each wait for their last job."""
    app = messages.make_celery(settings, "client")

    def run(count: int) -> None:
        with redis.Redis.from_url(server.url) as client:
            for _ in range(count):
                job_id = uuid.uuid4().hex
                messages.send_plan(app, job_id, "request")
                if not client.blpop([f"done:{job_id}"], _PATIENCE_S):
                    raise RuntimeError(f"no end of job {job_id} within {_PATIENCE_S} s")

    with worker(kind, server.url) as process:
        run(30)
        processes = {"worker": process, "redis": psutil.Process(server.pid)}
        before = {name: cpu_s(one) for name, one in processes.items()}
        threads = [threading.Thread(target=run, args=(jobs // clients,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = jobs // clients * clients
        return {name: (cpu_s(one) - before[name]) / done * 1000 for name, one in processes.items()}


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--jobs", type=int, default=300, help="jobs per row")
    parser.add_argument("--worker", choices=_KINDS, help="be the worker (what this script starts by itself)")
    parser.add_argument("--redis", help="address of the worker's Redis")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = {"outputs_dir": Path(folder), "base_url": "http://benchmark.test"}
        if arguments.worker:
            run_worker(arguments.worker, load_settings(redis_url=arguments.redis, **where))
            return 0
        rows: dict[str, dict[str, float]] = {}
        with RedisServer() as server:
            settings = load_settings(redis_url=server.url, **where)
            for kind in _KINDS:
                for clients in (1, 4):
                    row = measure(kind, server, settings, clients=clients, jobs=arguments.jobs)
                    rows[f"{kind}, {clients} clients"] = row
    table(
        "Six empty tasks, CPU ms a job",
        ("Celery", "worker", "Redis"),
        [(name, f"{row['worker']:.1f}", f"{row['redis']:.1f}") for name, row in rows.items()],
    )
    write_json(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
