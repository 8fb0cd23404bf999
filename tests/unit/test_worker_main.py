"""`python -m worker`: what happens before the worker's own modules are there."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared.errors import FatalError
from worker import __main__ as program

ROOT = Path(__file__).parents[2]


def _started(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments, "-m", "worker"],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_wrong_settings_are_told_before_torch_is_imported() -> None:
    ended = _started("-X", "importtime", DEVICE="abacus")
    assert ended.returncode == 1
    assert "FATAL ERROR" in ended.stderr
    assert "DEVICE" in ended.stderr
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time")}
    assert "shared.settings" in imported
    assert "torch" not in imported


def test_torch_is_imported_beside_the_worker_s_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def load_settings() -> None:
        monkeypatch.setattr("worker.app.run_worker", run_worker)

    def run_worker(_settings: object) -> int:
        if not began.wait(10):
            raise FatalError("nothing imports torch")
        return 7

    monkeypatch.setattr(program, "load_settings", load_settings)
    monkeypatch.setattr(program, "import_torch", began.set)
    assert program.main() == 7


def test_a_torch_that_cannot_be_imported_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: no such file')")
    ended = _started(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1
    assert "libtorch.so" in ended.stderr
