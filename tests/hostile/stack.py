"""The API (gunicorn) and a worker with tiny engines as real processes, for tests that attack them from outside."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from shared.settings import Settings
from shared.store import Store
from tests.processes import Process, python, wait_for
from tests.redis_server import free_port


class Stack:
    """One API and one worker on the settings' Redis and folder; a context manager that kills both at the end."""

    def __init__(self, settings: Settings, folder: Path, **environment: str) -> None:
        self.settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "OUTPUTS_DIR": str(settings.outputs_dir),
            "BASE_URL": self.url,
            "API_PORT": str(self.port),
            **environment,
        }
        self._folder = folder
        gunicorn = ("-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.app:create_app()")
        self.api = python("api", *gunicorn, env=self.env, log_dir=folder / "logs")
        self.worker = self.start_worker()
        self.store = Store.from_settings(settings)

    def start_worker(self) -> Process:
        return python("worker", "-m", "tests.tiny_worker", env=self.env, log_dir=self._folder / "logs")

    def wait_until_ready(self) -> None:
        wait_for("the stack", self._is_ready, self.api, self.worker)

    def _is_ready(self) -> bool:
        try:
            return self.get("/ready").status_code == 200
        except requests.ConnectionError:
            return False

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)

    def post(self, **options: Any) -> requests.Response:
        return requests.post(f"{self.url}/process", timeout=120, **options)

    @property
    def logs(self) -> str:
        return self.api.log + self.worker.log

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.worker.kill()
        self.api.kill()
        self.store.close()
