"""A whole stack of real processes on loopback, whose parts can be killed and started again one by one."""

import io
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
import requests
from PIL import Image

from shared.jobs import Job
from shared.settings import load_settings
from shared.storage import FolderStorage
from shared.store import Store
from shared.store.deliveries import DUE_KEY
from tests.integration.test_worker import picture
from tests.processes import Process, python, wait_for
from tests.receiver import SECRET, Receiver
from tests.redis_server import RedisServer, free_port


@dataclass(frozen=True)
class Accepted:
    """A job that the API has taken on: its id, the size of each side's picture, and whether they kill a worker."""

    job_id: str
    sizes: dict[str, tuple[int, int]]
    is_poisonous: bool = False


def poison() -> bytes:
    """A picture that kills the worker which computes it (tests/chaos/worker.py)."""
    file = io.BytesIO()
    Image.new("RGB", (60, 60), (255, 0, 255)).save(file, "PNG")
    return file.getvalue()


class Stack:
    """Redis with its append-only file, one API, any number of workers, a receiver of webhooks; nothing runs at first.

    A context manager that leaves no process behind.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.gate = folder / "gate"
        self.gate.mkdir(parents=True)
        self.redis = RedisServer(persist=True)
        self.receiver = Receiver()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.outputs = folder / "outputs"
        self.settings = load_settings(
            redis_url=self.redis.url, outputs_dir=self.outputs, base_url=self.url, source_ttl_s=0, result_cache_ttl_s=0
        )
        self.store = Store.from_settings(self.settings)
        self.storage = FolderStorage(self.outputs, self.url)
        self._env = {
            "REDIS_URL": self.redis.url,
            "OUTPUTS_DIR": str(self.outputs),
            "BASE_URL": self.url,
            "API_PORT": str(self.port),
            "ALLOW_PRIVATE_SOURCES": "127.0.0.1",
            "WEBHOOK_SECRET": SECRET,
            "TINY_GATE": str(self.gate),
            # Every picture is computed, and nothing of a job that has ended is kept.
            "RESULT_CACHE_TTL_S": "0",
            "SOURCE_TTL_S": "0",
            "RESCUE_AFTER_S": "3",
            **environment,
        }
        self._logs = folder / "logs"
        self._seeds = itertools.count(1)
        self.api: Process | None = None
        self.workers: dict[str, Process] = {}
        self.started: list[Process] = []

    # --- parts ------------------------------------------------------------------------------------------------
    def start(self) -> Self:
        """Start every part that does not run, and return when jobs would be done."""
        if not self.redis.is_running:
            self.redis.start()
        self.start_api()
        self.start_worker()
        self.wait_ready()
        return self

    def start_api(self) -> Process:
        arguments = ("-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.app:create_app()")
        self.api = python("api", *arguments, env=self._env, log_dir=self._logs)
        self.started.append(self.api)
        return self.api

    def start_worker(self, name: str = "worker-1", **environment: str) -> Process:
        env = {**self._env, "WORKER_NAME": name, **environment}
        worker = self.workers[name] = python(name, "-m", "tests.chaos.worker", env=env, log_dir=self._logs)
        self.started.append(worker)
        return worker

    def wait_ready(self, name: str = "worker-1") -> None:
        """Return when the API answers, and the worker of this name reports that this process of it is ready."""
        assert self.api is not None
        wait_for("the API", lambda: self.get("/live") == 200, self.api)
        worker = self.workers[name]
        # Its log, because the report of a killed predecessor may still be there.
        wait_for(name, lambda: "All models initialized" in worker.log and self.is_ready(name), worker)

    def is_ready(self, name: str) -> bool:
        return any(report["name"] == name and report["status"] == "ready" for report in self.store.workers())

    def restart_redis(self) -> None:
        """Kill Redis and start it again from its file."""
        self.redis.stop()
        self.redis.start()

    def kill_everything(self) -> None:
        """As a power cut of the whole stack."""
        for process in [self.api, *self.workers.values()]:
            if process is not None:
                process.kill()
        self.redis.stop()

    # --- clients ----------------------------------------------------------------------------------------------
    def get(self, path: str) -> int:
        """Status of a GET; 0 when nobody answers."""
        try:
            return requests.get(self.url + path, timeout=5).status_code
        except requests.RequestException:
            return 0

    def form(self, *sides: str, data: bytes | None = None, models: str = '["rmbg"]') -> tuple[dict[str, Any], Any]:
        """What to post for one job with pictures nobody has sent before (or `data`), and their sizes."""
        files, sizes = {}, {}
        for side in sides or ("front",):
            seed = next(self._seeds)
            width, height = 40 + seed % 50, 30 + seed % 40
            files[side] = (f"{side}.png", data or picture(seed, width, height))
            sizes[side] = (60, 60) if data else (width, height)
        options = f'{{"models": {models}, "webhook": {{"url": "{self.receiver.url()}"}}}}'
        return {"data": {"id": "chaos", "options": options}, "files": files}, sizes

    def post(self, *sides: str, data: bytes | None = None, models: str = '["rmbg"]', **headers: str) -> Accepted:
        """One job, not waited for."""
        form, sizes = self.form(*sides, data=data, models=models)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = requests.post(f"{self.url}/process", timeout=60, headers={"Prefer": "respond-async", **names}, **form)
        assert reply.status_code == 202, reply.text
        return Accepted(reply.json()["job_id"], sizes, data is not None)

    # --- gates ------------------------------------------------------------------------------------------------
    def hold(self, point: str) -> None:
        """Stop every step that comes to the point from now on."""
        (self.gate / f"entered-{point}").unlink(missing_ok=True)
        (self.gate / f"hold-{point}").touch()

    def release(self, point: str) -> None:
        (self.gate / f"hold-{point}").unlink(missing_ok=True)

    def wait_entered(self, point: str, *processes: Process) -> None:
        wait_for(f"a step at {point}", (self.gate / f"entered-{point}").exists, *processes)

    def under_way(self, name: str = "worker-1") -> set[str]:
        """The jobs that a worker has noted it is working on."""
        with redis.Redis(port=self.redis.port, decode_responses=True) as client:
            return set(client.hkeys(f"worker:{name}:jobs"))

    # --- the end ----------------------------------------------------------------------------------------------
    def settle(self, accepted: list[Accepted], timeout_s: float = 60) -> list[Job]:
        """The jobs, once all have ended and their webhooks were delivered, or as they are when the time is over."""
        deadline, due_s = time.monotonic() + timeout_s, 0.0
        while time.monotonic() < deadline:
            jobs = [self.store.get(job.job_id) for job in accepted]
            if all(job.is_final for job in jobs):
                states = [d.state for job in jobs for d in self.store.deliveries.of_job(job.job_id).values()]
                if all(state == "delivered" for state in states):
                    return jobs
                if time.monotonic() > due_s:
                    due_s = time.monotonic() + 2
                    self._make_due()  # a try that was cut off is due again after its time, which tests do not have
            time.sleep(0.05)
        return [self.store.get(job.job_id) for job in accepted]

    def _make_due(self) -> None:
        with redis.Redis(port=self.redis.port, decode_responses=True) as client:
            for ref in client.zrange(DUE_KEY, 0, -1):
                client.zadd(DUE_KEY, {ref: 0}, xx=True)

    def logs(self, last: int = 4000) -> str:
        """The end of the log of every process that was started."""
        return "\n".join(f"--- {process.log_path.name}\n{process.log[-last:]}" for process in self.started[-6:])

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What the processes have logged of one event, killed ones too."""
        lines = [line for process in self.started for line in process.log.splitlines()]
        return [json.loads(line) for line in lines if f'"event": "{event}"' in line and line.endswith("}")]

    def __enter__(self) -> Self:
        self.receiver.__enter__()
        self.redis.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for process in self.started:
            process.kill()
        self.store.close()
        self.redis.close()
        self.receiver.__exit__(kind, exc, tb)
