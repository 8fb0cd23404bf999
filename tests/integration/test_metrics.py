"""What an operator sees of faults: each is provoked in the real processes, then read from /metrics and the logs."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from shared.settings import load_settings
from tests.conftest import eventually
from tests.hostile.stack import Stack
from tests.integration.test_api_server import Server
from tests.integration.test_worker import picture
from tests.processes import Process, wait_for
from tests.receiver import SECRET, Receiver
from tests.redis_server import RedisServer, free_port

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docs" / "alerts.yml"


class Watched:
    """A stack, its gate and its metrics."""

    def __init__(self, stack: Stack, gate: Path) -> None:
        self.stack, self.gate = stack, gate

    def metrics(self) -> dict[str, dict[str, float]]:
        """name -> labels as `name=value,...` -> number."""
        reply = self.stack.get("/metrics")
        assert reply.status_code == 200, reply.text
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(reply.text):
            assert family.documentation, family.name
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    def send(self, seed: int, options: dict[str, Any] | None = None, **request: Any) -> requests.Response:
        form = {"id": "1", "options": json.dumps({"models": ["rmbg"], **(options or {})})}
        return self.stack.post(data=form, files={"front": ("a.png", picture(seed))}, **request)

    def lines(self, process: Process, request_id: str) -> list[dict[str, Any]]:
        """A request's events in the log of a process."""
        whole = process.log.rpartition("\n")[0].splitlines()
        found = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in found if line.get("request_id") == request_id]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("metrics")
    gate = folder / "gate"
    gate.mkdir()
    with RedisServer() as redis_server:
        settings = load_settings(redis_url=redis_server.url, outputs_dir=folder / "outputs")
        environment = {
            "TINY_GATE": str(gate),
            "WEBHOOK_SECRET": SECRET,
            "ALLOW_PRIVATE_SOURCES": "127.0.0.1",
            "OUTPUT_MAX_BYTES": "1",
        }
        with Stack(settings, folder, **environment) as stack:
            yield Watched(stack, gate)


def test_a_failed_cell_is_counted_by_its_code_and_its_job_by_its_end(watched: Watched) -> None:
    before = watched.metrics()
    (watched.gate / "break-rmbg").touch()
    reply = watched.send(1)
    (watched.gate / "break-rmbg").unlink()
    assert reply.json()["code"] == "inference_failed"
    assert watched.send(2).json()["status"] == "succeeded"
    after = watched.metrics()

    def rise(name: str, labels: str) -> float:
        return after[name][labels] - before[name][labels]

    assert rise("cutout_cell_failures_total", "code=inference_failed") == 1
    assert rise("cutout_jobs_ended_total", "status=failed") == 1
    assert rise("cutout_jobs_ended_total", "status=succeeded") == 1
    assert rise("cutout_deliveries_total", "task=jobs.plan") == 2
    assert rise("cutout_deliveries_total", "task=jobs.cell") == 2
    assert rise("cutout_redeliveries_total", "task=jobs.cell") == 0
    assert after["cutout_workers"]["state=ready"] == 1
    assert after["cutout_outputs_disk_size_bytes"][""] > after["cutout_outputs_disk_free_bytes"][""] > 0


def test_a_retry_of_a_job_and_of_a_webhook_is_counted(watched: Watched) -> None:
    with Receiver() as receiver:
        receiver.answers = [(500, {})]
        hook = {"webhook": {"url": receiver.url(), "events": ["job.failed"]}}
        (watched.gate / "break-rmbg").touch()
        job_id = watched.send(3, hook).json()["job_id"]
        (watched.gate / "break-rmbg").unlink()
        again = requests.post(f"{watched.stack.url}/jobs/{job_id}/retry", timeout=60)
        assert again.json()["status"] == "succeeded"
        assert watched.metrics()["cutout_retries_total"]["kind=job"] == 1
        wait_for("the second try", lambda: watched.metrics()["cutout_retries_total"]["kind=webhook"] == 1)
        assert len(receiver.received) == 2


def test_work_that_a_killed_worker_held_is_counted_as_redelivered_and_the_queue_shows_its_age(
    watched: Watched,
) -> None:
    """Given a held cell, when its worker gets kill -9, then the next one's deliveries say that they are the second."""
    stack = watched.stack
    (watched.gate / "hold-rmbg").touch()
    entered = watched.gate / "entered-rmbg"
    entered.unlink()
    job_id = watched.send(4, headers={"Prefer": "respond-async"}).json()["job_id"]
    wait_for("a forward pass", entered.exists)
    stack.worker.kill()
    waiting = watched.send(5, headers={"Prefer": "respond-async"}).json()["job_id"]
    wait_for("its age", lambda: watched.metrics()["cutout_queue_age_seconds"]["queue=jobs"] > 0.2)
    assert watched.metrics()["cutout_messages_waiting"]["queue=jobs"] == 1
    (watched.gate / "hold-rmbg").unlink()
    stack.worker = stack.start_worker()
    for other in (job_id, waiting):
        assert stack.store.wait_final(other, 60).status == "succeeded", stack.logs[-6000:]
    found = watched.metrics()
    assert found["cutout_redeliveries_total"]["task=jobs.cell"] >= 1
    assert found["cutout_queue_age_seconds"] == {"queue=jobs": 0, "queue=cells": 0}
    assert found["cutout_deliveries_total"]["task=jobs.cell"] >= 3, "counts outlive the worker"


def test_what_the_sweep_removes_is_counted_and_gone_for_the_client(watched: Watched) -> None:
    """Given a cap of one byte, when a worker starts and sweeps, then every finished job's files are gone."""
    url = watched.send(6).json()["front_rmbg"]
    assert requests.get(url, timeout=10).status_code == 200
    watched.stack.worker.kill()
    watched.stack.worker = watched.stack.start_worker()  # it sweeps at once, then every minute
    wait_for("the sweep", lambda: requests.get(url, timeout=10).status_code == 410, watched.stack.worker)
    assert requests.get(url, timeout=10).json()["code"] == "output_expired"
    wait_for("its measure", lambda: watched.metrics().get("cutout_outputs_bytes") == {"": 0})
    found = watched.metrics()
    assert found["cutout_outputs_removed_jobs_total"]["reason=size"] >= 1
    assert found["cutout_outputs_removed_bytes_total"]["reason=size"] > 0
    # The result cache knows of the cell, and finds that its file is gone: it is computed again.
    again = watched.send(6).json()
    assert (again["status"], again["cells"]["front_rmbg"]["cached"]) == ("succeeded", False)
    assert requests.get(again["front_rmbg"], timeout=10).status_code == 200


def test_one_request_is_found_by_its_id_in_the_logs_of_both_processes(watched: Watched) -> None:
    reply = watched.send(7, headers={"X-Request-ID": "order-8812"})
    job_id = reply.json()["job_id"]
    for process, events in (
        (watched.stack.api, {"job_accepted", "request_done"}),
        (watched.stack.worker, {"cell_done", "job_done"}),
    ):
        # The reply may be there before the worker has written its last line.
        eventually(lambda: {line["event"] for line in watched.lines(process, "order-8812")} >= events)  # noqa: B023
        assert {line["job_id"] for line in watched.lines(process, "order-8812") if "job_id" in line} == {job_id}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_metric_and_label_that_an_alert_names_is_on_the_page(watched: Watched) -> None:
    found = watched.metrics()
    assert len(rules()) >= 10
    for rule in rules():
        for name, selector in re.findall(r"\b(cutout_\w+)(?:\{(.*?)\})?", rule["expr"]):
            assert name in found, f"{rule['alert']} names {name}, which /metrics has not"
            labels = {pair.split("=")[0] for key in found[name] for pair in key.split(",")}
            assert set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', selector)) <= labels, rule["alert"]
            for value in re.findall(r'\w+="(\w+)"', selector):
                assert any(f"={value}" in key for key in found[name]), f"{rule['alert']}: nothing is {value}"


def test_every_rule_says_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
    codes = {"source_", "job_canceled", "job_expired", "output_too_large"}
    (failures,) = (rule["expr"] for rule in rules() if rule["alert"] == "CutoutFailures")
    assert all(code in failures for code in codes), "what only the client can mend alarms nobody"


def test_prometheus_itself_accepts_the_rules_and_each_fires_when_it_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (Debian: prometheus)")
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(ROOT / "tests/data/alerts_test.yml")]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_without_redis_the_page_still_comes_and_says_so(tmp_path: Path) -> None:
    settings = load_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", outputs_dir=tmp_path)
    server = Server(settings, tmp_path / "api.log")
    try:
        eventually(server.is_live, 60)
        text = requests.get(f"{server.url}/metrics", timeout=30).text
        assert "cutout_redis_up 0.0" in text
        assert 'cutout_workers{state="ready"} 0.0' in text
    finally:
        server.close()
