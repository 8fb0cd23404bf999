"""The command line: what it refuses before anything is sent, what it makes of options, and how it is installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client import __version__
from client.__main__ import run_command
from shared import __version__ as service_version
from tests.flaky_server import Answer, FlakyServer, problem

ROOT = Path(__file__).parents[2]
JOB = {"job_id": "j1", "id": 7, "status": "queued", "created_at": "2026-11-24T10:00:00Z"}


@pytest.fixture(autouse=True)
def _service(server: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTOUT_URL", server.url)
    server.plan("GET", "/health", Answer(200, {"status": "ready", "models": {"rmbg": {}}}))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "my tee.png"
    path.write_bytes(b"picture")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["process"], "give --front, --back or both"),
        (["process", "--front", "nowhere.png"], "there is no file nowhere.png"),
        (["process", "--front", "PICTURE", "--id", "a b"], "--id: id 'a b' is not 1-64 of A-Z a-z 0-9 _ -"),
        (["process", "--front", "PICTURE", "--option", "proofs"], "--option proofs: write KEY=VALUE"),
        (["process", "--front", "PICTURE", "--option", "a=1", "--option", "a.b=2"], "--option a.b=2: a is a value"),
        (["process", "--front", "PICTURE", "--options", "[1]"], "--options: is not a JSON object such as"),
        (["process", "--front", "PICTURE", "--url", "nonsense"], "base_url must be like http://127.0.0.1:8001"),
        (["folder", "nowhere"], "there is no folder nowhere"),
        (["csv", "nowhere.csv"], "nowhere.csv cannot be read: No such file or directory"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_sent(
    server: FlakyServer, picture: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run_command([picture if argument == "PICTURE" else argument for argument in arguments]) == 2
    assert capsys.readouterr().err.startswith(f"cutout: {sentence}")
    assert server.asked == []


def sent_options(server: FlakyServer, out: Path, *arguments: str) -> dict[str, Any]:
    """The options that a command sends."""
    server.plan("POST", "/process", problem(422, "invalid_request"))
    assert run_command(["process", "--front", "https://example.com/f.png", "--out", str(out), *arguments]) == 1
    body: dict[str, Any] = json.loads(server.asked[-1].body)
    options: dict[str, Any] = body["options"]
    return options


def test_options_are_put_together_from_all_their_forms(server: FlakyServer, tmp_path: Path) -> None:
    arguments = ("--options", '{"holes": "keep", "print": {"dpi": 150}}', "--option", "holes=auto")
    more = ("--option", "print.alpha=halftone", "--option", "print.choke_px=0.5", "--option", "proofs=true")
    assert sent_options(server, tmp_path, *arguments, *more, "--models", "rmbg,birefnet") == {
        "holes": "auto",
        "print": {"dpi": 150, "alpha": "halftone", "choke_px": 0.5},
        "proofs": True,
        "models": ["rmbg", "birefnet"],
    }


def test_a_wrong_api_key_is_told_once_and_the_report_says_what_is_missing(
    server: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTOUT_API_KEY", "wrong")
    server.plan("POST", "/process", problem(401, "unauthorized"))
    for number in range(5):
        (tmp_path / f"{number}_front.png").write_bytes(b"picture")
    out = tmp_path / "out"
    assert run_command(["folder", str(tmp_path), "--out", str(out), "--concurrency", "1"]) == 1
    assert "cutout: unauthorized: why" in capsys.readouterr().err
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer wrong"}
    assert json.loads((out / "report.json").read_text())["missing"] == 5


def test_jobs_are_listed_up_to_the_limit(server: FlakyServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.plan("GET", "/jobs", Answer(200, {"jobs": [JOB, {**JOB, "job_id": "j2"}], "next_cursor": "more"}))
    assert run_command(["jobs", "--status", "queued", "--status", "failed", "--limit", "3"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["j1", "j2", "j1"]
    assert "status=queued&status=failed" in server.asked[0].path
    assert run_command(["jobs", "--json", "--limit", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == JOB


def test_one_job_that_cannot_be_stopped_does_not_keep_the_others(
    server: FlakyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.plan("POST", "/jobs/j1/cancel", problem(409, "job_already_final"))
    server.plan("POST", "/jobs/j2/cancel", Answer(200, {**JOB, "job_id": "j2", "status": "canceled"}))
    assert run_command(["cancel", "j1", "j2"]) == 1
    written = capsys.readouterr()
    assert written.out == "j2: canceled\n"
    assert written.err == "cutout: job_already_final: why (request req-1)\n"


def test_help_and_version_load_neither_requests_nor_pydantic() -> None:
    for argument in ("--help", "--version"):
        code = f"import sys, client.__main__ as m\ntry: m.run_command(['{argument}'])\nexcept SystemExit: pass\n"
        code += "sys.exit(len({'requests', 'pydantic', 'tqdm'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "cutout" in done.stdout


def test_the_client_has_the_services_version() -> None:
    assert __version__ == service_version


@pytest.mark.slow
def test_pip_installs_the_client_alone_with_its_command(tmp_path: Path) -> None:
    """Given a copy of what the client is made of, when pip installs it, then `cutout` runs from anywhere."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("client", "api", "shared"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--target", site, source], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in site.iterdir()}
    assert names == {"bin", "client", f"cutout_client-{__version__}.dist-info"}
    assert (site / "client" / "py.typed").is_file()
    metadata = (site / f"cutout_client-{__version__}.dist-info" / "METADATA").read_text()
    needed = {line.split(":")[1].split(">")[0].strip() for line in metadata.splitlines() if "Requires-Dist" in line}
    assert needed == {"requests", "pydantic", "tqdm"}
    command = subprocess.run(
        [site / "bin" / "cutout", "folder", "nowhere"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert (command.returncode, command.stderr) == (2, "cutout: there is no folder nowhere\n")
