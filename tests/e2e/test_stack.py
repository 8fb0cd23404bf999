"""The whole stack as people start it: `up` until Ctrl-C, the README's curl lines, `demo`."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from client.events import parse_events
from tests.gemini_server import KEY, GeminiServer
from tests.processes import ROOT, Process, python, wait_for
from tests.redis_server import free_port

SAMPLES = ROOT / "tests" / "data" / "samples"
#: Worst acceptable cutout of a sample design by the starter weights: mean absolute alpha error and IoU. Measured: front
#: 0.020-0.022 and 0.98, back 0.064-0.070 and 0.98; they miss the wide, faint glow of the back, soft alpha in the truth.
ALPHA_ERROR, IOU = 0.08, 0.88


class Stack:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.outputs = folder / "outputs"
        self.env = {
            "API_PORT": str(self.port),
            "OUTPUTS_DIR": str(self.outputs),
            "MODEL_PROFILE": "starter",
            "BASE_URL": self.url,
            "LOG_FORMAT": "json",
            "PYTHONUNBUFFERED": "1",
        }
        self.folder = folder
        self.process = self.start()
        wait_for("the stack", lambda: "\nReady: http" in self.process.log, self.process, timeout_s=180)

    def start(self) -> Process:
        return python("stack", "-m", "shared.local", "up", env=self.env, log_dir=self.folder)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("e2e stack"))  # a folder with a space in its name
    yield stack
    if stack.process.popen.poll() is None:
        stack.process.popen.send_signal(signal.SIGINT)
        stack.process.popen.wait(60)
    stack.process.kill()


def upload(stack: Stack, **sides: Any) -> requests.Response:
    fresh = {"Cache-Control": "no-cache"}  # the samples come again and again
    return requests.post(f"{stack.url}/process", data={"id": "e2e"}, files=sides, headers=fresh, timeout=120)


def sample(side: str) -> bytes:
    return next(SAMPLES.glob(f"{side}.*")).read_bytes()


def assert_right(png: bytes, side: str) -> None:
    """The cutout agrees with the sample's true alpha, and has nothing under alpha 0."""
    cutout = np.asarray(Image.open(io.BytesIO(png)))
    truth = np.asarray(Image.open(SAMPLES / f"{side}_alpha.png").convert("L")) / 255
    assert cutout.shape == (*truth.shape, 4)
    alpha = cutout[..., 3] / 255
    error = np.abs(alpha - truth).mean()
    iou = ((alpha > 0.5) & (truth > 0.5)).sum() / ((alpha > 0.5) | (truth > 0.5)).sum()
    assert error <= ALPHA_ERROR, (error, iou)
    assert iou >= IOU, (error, iou)
    assert not cutout[cutout[..., 3] == 0].any()


def descendants(pid: int) -> set[int]:
    """Process ids of all children, their children and so on."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if parent == pid:
            child = int(path.parent.name)
            found |= {child} | descendants(child)
    return found


def command_line(pid: int) -> bytes:
    """The arguments of a process, each ended by a zero byte; nothing of one that has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def readme_examples(language: str) -> list[str]:
    """The README's examples that are marked to be run, in its order."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"<!-- run by tests/e2e -->\n```{language}\n(.*?)```", text, re.DOTALL)


def with_what_it_needs(examples: list[str]) -> list[str]:
    """Each example after the silent one before it that sets `location`, where it goes on with that."""
    ready, earlier = [], ""
    for example in examples:
        needs = "$location" in example and "location=" not in example
        ready.append(f"{{ {earlier}}} >/dev/null\n{example}" if needs else example)
        earlier = example if "location=" in example else earlier
    return ready


def run_example(stack: Stack, folder: Path, command: list[str], example: str) -> str:
    """Run an example in a folder that has the samples where the README says; what it prints."""
    (folder / "tests").symlink_to(ROOT / "tests")
    script = example.replace("http://127.0.0.1:8001", stack.url)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUTOUT_URL": stack.url}
    done = subprocess.run([*command, script], cwd=folder, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{example}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("example", with_what_it_needs(readme_examples("bash")))
def test_the_commands_of_the_readme_run_as_they_are_shown(stack: Stack, tmp_path: Path, example: str) -> None:
    """Given the README's lines, when they run against this stack, then all cutouts of their job are right."""
    if shutil.which("curl") is None:
        assert not os.environ.get("CI"), "no curl in CI"
        pytest.skip("curl is not installed")
    # As `pip install .` would put it on the PATH.
    shell = f'cutout() {{ "{sys.executable}" -m client "$@"; }}\n'
    printed = run_example(stack, tmp_path, ["bash", "-euo", "pipefail", "-c"], shell + example)
    if example.startswith("cutout"):
        report = json.loads((tmp_path / "cutouts" / "report.json").read_text())
        files = {row["cell"]: (tmp_path / "cutouts" / row["file"]).read_bytes() for row in report["cells"]}
    else:
        # Its last event holds what the reply of a job holds.
        is_stream = example.endswith('/events"\n')
        reply = list(parse_events([printed.encode()]))[-1].data["result"] if is_stream else json.loads(printed)
        job_id = reply["job_id"]
        envelope: Any = wait_for("the job", lambda: get_ended(stack, job_id), stack.process)
        files = {name: requests.get(cell["url"], timeout=30).content for name, cell in envelope["cells"].items()}
    assert len(files) in (2, 4)
    for name, png in files.items():
        assert_right(png, name.partition("_")[0])


def get_ended(stack: Stack, job_id: str) -> dict[str, Any] | None:
    """The job, once it has succeeded."""
    envelope: dict[str, Any] = requests.get(f"{stack.url}/jobs/{job_id}", timeout=10).json()
    return envelope if envelope["status"] == "succeeded" else None


def test_the_python_example_of_the_readme_runs_as_it_is_shown(stack: Stack, tmp_path: Path) -> None:
    (example,) = readme_examples("python")
    printed = run_example(stack, tmp_path, [sys.executable, "-c"], example)
    files = {path.name: path.read_bytes() for path in (tmp_path / "cutouts").iterdir()}
    assert sorted(files) == [f"124_{side}_{model}.png" for side in ("back", "front") for model in ("birefnet", "rmbg")]
    for name, png in files.items():
        assert_right(png, name.split("_")[1])
        assert f"cutouts/{name}" in printed
    assert printed.splitlines()[-1] in ("rmbg", "birefnet")


def test_an_asynchronous_job_is_polled_to_its_end(stack: Stack) -> None:
    accepted = requests.post(
        f"{stack.url}/process",
        data={"id": "poll"},
        files={"back": sample("back")},
        headers={"Prefer": "respond-async"},
        timeout=30,
    )
    assert accepted.status_code == 202
    location = accepted.headers["Location"]
    envelope = wait_for(
        "the job",
        lambda: (e := requests.get(stack.url + location, timeout=10).json())["status"] == "succeeded" and e,
        stack.process,
    )
    assert envelope["progress"] == {"done": 2, "total": 2}
    assert "front_rmbg" not in envelope["result"]
    assert set(envelope["cells"]) == {"back_rmbg", "back_birefnet"}


def test_a_bad_side_costs_only_itself(stack: Stack) -> None:
    reply = upload(stack, front=("front.png", b"text, not a picture"), back=("back.jpg", sample("back"))).json()
    assert reply["status"] == "partial"
    assert reply["front_rmbg"] is None
    assert reply["cells"]["front_birefnet"]["error"]["code"] == "source_not_an_image"
    assert_right(requests.get(reply["back_rmbg"], timeout=30).content, "back")


def test_health_names_both_models_and_their_weights(stack: Stack) -> None:
    health = requests.get(f"{stack.url}/health", timeout=10)
    assert health.status_code == 200
    models = health.json()["models"]
    assert set(models) == {"rmbg", "birefnet"}
    assert {model["status"] for model in models.values()} == {"ready"}
    assert {model["profile"] for model in models.values()} == {"starter"}


def test_an_unknown_job_is_a_clear_error(stack: Stack) -> None:
    response = requests.get(f"{stack.url}/jobs/0123456789abcdef0123456789abcdef", timeout=10)
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["code"] == "job_not_found"


def test_the_log_says_that_all_models_are_there(stack: Stack) -> None:
    assert "All models initialized successfully" in stack.process.log


def test_smoke_passes_against_it(stack: Stack) -> None:
    with python("smoke", "-m", "shared.local", "smoke", env=stack.env, log_dir=stack.folder) as smoke:
        assert smoke.popen.wait(120) == 0, smoke.log
        assert "4 of 4 cutouts" in smoke.log
        assert smoke.log.count('"reason": "not_asked"') == 2, "a check costs nothing, whatever the service extracts"


def test_a_second_start_on_the_busy_port_says_so(stack: Stack) -> None:
    with stack.start() as second:
        assert second.popen.wait(60) == 1
        assert f"Port {stack.port} on 127.0.0.1 is busy" in second.log
        assert "Traceback" not in second.log


def test_a_killed_worker_is_started_again(stack: Stack) -> None:
    def worker_pids() -> list[int]:
        own = descendants(stack.process.popen.pid)
        return [pid for pid in own if command_line(pid).endswith(b"\0-m\0worker\0")]

    (before,) = worker_pids()
    os.kill(before, signal.SIGKILL)
    wait_for("another worker", lambda: any(pid != before for pid in worker_pids()), stack.process)
    reply = upload(stack, back=("back.jpg", sample("back"))).json()
    assert reply["status"] == "succeeded"


def test_ctrl_c_stops_all_of_it(stack: Stack) -> None:
    """Runs last in this module: the stack is gone afterwards."""
    children = descendants(stack.process.popen.pid)
    assert len(children) >= 3  # Redis, worker, API
    stack.process.popen.send_signal(signal.SIGINT)
    assert stack.process.popen.wait(60) == 0, stack.process.log[-3000:]
    assert "Everything is stopped." in stack.process.log
    assert "Traceback" not in stack.process.log
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", stack.port)) != 0
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def test_a_redis_that_has_died_stops_the_stack_with_the_reason(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    with stack.process:
        (redis,) = [pid for pid in descendants(stack.process.popen.pid) if b"redis-server" in command_line(pid)]
        os.kill(redis, signal.SIGKILL)
        assert stack.process.popen.wait(60) == 1
        assert "Redis has ended" in stack.process.log


@pytest.mark.parametrize(
    ("variable", "value"), [("API_PORT", "abc"), ("WORKER_THREADS", "0"), ("MAX_SYNC_WAITS", "999"), ("BASE_URL", "x")]
)
def test_wrong_settings_are_named_before_anything_starts(tmp_path: Path, variable: str, value: str) -> None:
    env = {variable: value}
    with python("stack", "-m", "shared.local", "up", env=env, log_dir=tmp_path) as stack:
        assert stack.popen.wait(60) == 1
        assert "Settings are wrong" in stack.log
        assert variable in stack.log
        assert "Traceback" not in stack.log
        assert "[1/3]" not in stack.log


@pytest.mark.slow
def test_demo_does_the_main_job_and_leaves_nothing_running(tmp_path: Path, remote: GeminiServer) -> None:
    """Given a key and a service that extracts everything, then the samples still stay on this machine."""
    env = {"GEMINI_API_KEY": KEY, "GEMINI_BASE_URL": remote.url, "EXTRACT_DESIGN": "always"}
    with python("demo", "-m", "shared.local", "demo", env=env, log_dir=tmp_path) as demo:
        children: set[int] = set()
        while demo.popen.poll() is None:
            children |= descendants(demo.popen.pid)
            time.sleep(0.1)
        assert demo.popen.returncode == 0, demo.log
        assert len(children) >= 3
        assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
        paths = re.findall(r"^  (?:front|back)_\w+ +(.+\.png)$", demo.log, re.MULTILINE)
        assert len(paths) == 4
        for path in paths:
            assert_right(Path(path).read_bytes(), Path(path).stem.rpartition("_")[0].rpartition("_")[2])
        assert demo.log.rstrip().endswith("done.")
    assert remote.connections == 0
