"""Who may import whom: api -> shared <- worker, no torch outside the worker, and a client that stands alone."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "PIL", "cv2"}


def loaded_after(code: str) -> set[str]:
    """Top-level names of all modules that are loaded after running `code` in a fresh interpreter."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def imported_by(folder: str) -> dict[str, set[str]]:
    """file -> top-level names of everything it imports, wherever in the file.

    Left out is shared/local, which starts both sides as a user would and belongs to neither.
    """
    found: dict[str, set[str]] = {}
    for path in (ROOT / folder).rglob("*.py"):
        if path.is_relative_to(ROOT / "shared" / "local"):
            continue
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
        found[str(path.relative_to(ROOT))] = names
    assert found, f"no files in {folder}"
    return found


def test_a_whole_web_app_loads_no_torch_and_nothing_of_the_worker() -> None:
    loaded = loaded_after("from api.app import create_app; create_app().test_client().get('/openapi.json')")
    assert not loaded & (HEAVY | {"worker"})


def test_shared_loads_neither_side() -> None:
    modules = [f"shared.{path.stem}" for path in (ROOT / "shared").glob("*.py") if path.stem != "__init__"]
    modules.append("shared.store")
    loaded = loaded_after(f"import {', '.join(modules)}")
    assert not loaded & (HEAVY | {"api", "worker", "flask"})


def test_the_client_loads_nothing_of_the_service() -> None:
    loaded = loaded_after("import client.commands; from client import CutoutClient; CutoutClient()")
    assert not loaded & (HEAVY | {"api", "worker", "shared", "flask", "redis"})


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("api", {"worker", "client", *HEAVY}),
        ("shared", {"api", "worker", "client", *HEAVY}),
        ("worker", {"api", "client", "flask", "gunicorn"}),
        ("client", {"api", "worker", "shared", "flask", "redis", "celery", *HEAVY}),
    ],
)
def test_no_file_imports_against_the_arrows(folder: str, forbidden: set[str]) -> None:
    wrong = {path: names & forbidden for path, names in imported_by(folder).items() if names & forbidden}
    assert wrong == {}


def test_only_the_store_and_the_messages_know_redis() -> None:
    users = [path for folder in ("api", "shared") for path, names in imported_by(folder).items() if "redis" in names]
    store = [f"shared/store/{name}.py" for name in ("connection", "jobs", "lean")]
    assert sorted(users) == ["shared/messages.py", *store]


def test_loading_a_network_does_not_import_torch_s_compiler() -> None:
    """It is most of what a start without it takes; arithmetic on the meta device is enough to pull it in."""
    loaded = loaded_after(
        "from worker.nets import CONFIGS, load_checkpoint;"
        "load_checkpoint('models/starter/rmbg.safetensors', CONFIGS['starter'])"
    )
    assert "torch" in loaded
    assert not loaded & {"sympy"}
