"""The running API against its own document: no 500, no undocumented status, every reply as described.

Schemathesis makes about a thousand requests from openapi.json, right and wrong ones, and follows one reply into the
next request. Deterministic: the same requests on every run, as far as the ids of jobs allow.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from api.keys import new_key
from shared.settings import Settings
from shared.store import Store
from tests.conftest import eventually
from tests.integration.test_api_server import Server
from tests.processes import python, wait_for
from tests.receiver import SECRET

CONFIG = Path(__file__).with_name("schemathesis.toml")
KEY, ENTRY = new_key("fuzz")


@pytest.fixture
def server(settings: Settings, store: Store, tmp_path: Path) -> Iterator[Server]:
    """Everything that can be switched on is, so that its replies are looked at too."""
    environment = {
        "API_KEYS": ENTRY,
        "RATE_LIMIT": "1000000/minute",
        "OUTPUT_URL_TTL": "600",
        "OUTPUT_URL_SECRET": "0123456789abcdef" * 4,
        "WEBHOOK_SECRET": SECRET,
        "SYNC_WAIT_S": "5",
        "SYNC_WAIT_LIMIT_S": "5",
        "DOWNLOAD_TIMEOUT_S": "2",
        "LOG_LEVEL": "WARNING",
    }
    server = Server(settings, tmp_path / "api.log", **environment)
    env = {
        **environment,
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "OUTPUTS_DIR": str(settings.outputs_dir),
        "BASE_URL": server.url,
    }
    try:
        with python("worker", "-m", "tests.tiny_worker", env=env, log_dir=tmp_path) as worker:
            eventually(server.is_live, 60)
            wait_for("the worker", lambda: any(w["status"] == "ready" for w in store.workers()), worker)
            yield server
    finally:
        server.close()


def answered(server: Server) -> dict[tuple[str, str], int]:
    """(route, status) -> how many replies, as the API counted them."""
    text = requests.get(f"{server.url}/metrics", headers={"X-API-Key": KEY}, timeout=10).text
    lines = re.findall(r'^cutout_http_requests_total\{.*route="(.*?)",status="(\d+)"\} (\d+)', text, re.MULTILINE)
    found: dict[tuple[str, str], int] = {}
    for route, status, count in lines:
        found[route, status] = found.get((route, status), 0) + int(count)
    return found


def test_the_api_keeps_to_its_document(server: Server, tmp_path: Path) -> None:
    command = ["--config-file", str(CONFIG), "run", f"{server.url}/openapi.json"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *command, "--no-color", "-H", f"Authorization: Bearer {KEY}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    failures = done.stdout.partition("FAILURES")[2].partition("WARNINGS")[0] or done.stdout
    assert done.returncode == 0, f"{failures[:20000]}\n{done.stderr[-2000:]}\n{server.log[-4000:]}"
    found = answered(server)
    assert [key for key in found if key[1] in ("500", "501", "502")] == []
    # It would be no use if nothing had got in: every route was asked, and jobs were really done.
    for key in (("/process", "200"), ("/process", "202"), ("/process", "401"), ("/process", "422"),
                ("/jobs", "200"), ("/jobs/<job_id>", "200"), ("/jobs/<job_id>", "404"),
                ("/outputs/<name>", "403"), ("/metrics", "401")):  # fmt: skip
        assert found.get(key), (key, found)
    assert sum(found.values()) > 500
