"""The README's tables say what the code says."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from api.errors import error_classes
from shared.errors import AppError
from shared.options import JobOptions, PrintOptions
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its head."""
    after = README.partition(f"\n{heading}\n")[2]
    table = re.search(r"^\|.*\n\| :.*\n((?:\|.*\n)+)", after, re.MULTILINE)
    assert table is not None, f"no table under {heading}"
    return [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table[1].splitlines()]


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, bool):
        value = str(value).lower()
    return f"`{value}`" if str(value) else "(empty)"


def test_the_settings_table_is_the_settings() -> None:
    expected = [
        [f"`{name.upper()}`", _as_text(field.default), str(field.description)]
        for name, field in Settings.model_fields.items()
    ]
    assert _rows("## Settings") == expected


@pytest.mark.parametrize(("heading", "model"), [("### Options", JobOptions), ("`print` options:", PrintOptions)])
def test_the_option_tables_are_the_options(heading: str, model: type[BaseModel]) -> None:
    expected = [
        [f"`{name}`", "(none)" if field.default is None else f"`{str(field.default).replace('False', 'false')}`"]
        for name, field in model.model_fields.items()
    ]
    assert [row[:2] for row in _rows(heading)] == expected
    assert [row[2] for row in _rows(heading)] == [field.description for field in model.model_fields.values()]


def test_the_error_table_has_every_code_that_a_client_can_meet() -> None:
    listed = {row[0].strip("`"): (int(row[1]), row[3]) for row in _rows("### Error codes")}
    parents = {cls.code for cls in error_classes().values() if cls.__subclasses__()}
    for code, cls in error_classes().items():
        if code in parents - {"not_found"}:
            assert code not in listed, f"{code} stands for several; list its children"
        else:
            assert listed.get(code) == (cls.status, "yes" if cls.retryable else "no"), code
    assert issubclass(error_classes()["not_found"], AppError)


def test_every_pinned_package_has_its_reason() -> None:
    reasons = "\n".join(row[0] for row in _rows("## Dependencies"))
    for name in ("api", "worker", "dev"):
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            match = re.match(r"([A-Za-z0-9_.-]+)(?:\[\w+\])?==", line)
            if match:
                assert f"`{match[1]}`" in reasons, f"{match[1]} is in {name}.txt and not in the README's table"


def test_every_make_target_of_the_command_table_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for row in _rows("## Commands") for target in re.findall(r"make ([a-z-]+)", row[0])}
    assert named <= targets
    assert {"help", "setup", "up", "down", "restart", "logs", "test", "shell", "status", "check-cache"} <= named
    assert {"clean", "clean-full", "download-models", "demo", "local", "smoke"} <= named


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_every_example_that_can_run_here_is_run_by_a_test() -> None:
    blocks = re.findall(r"^(.*)\n```(?:bash|python)\n((?:.*\n)*?)```", README, re.MULTILINE)
    assert len(blocks) > 4
    for above, block in blocks:
        calls_the_api = "curl" in block or "cutout " in block or "import CutoutClient" in block
        if calls_the_api and "example.com" not in block:
            assert above == "<!-- run by tests/e2e -->", f"not marked to be run:\n{block}"


def test_the_promises_name_tests_that_there_are() -> None:
    named = [target for row in _rows("## What you can rely on") for target in re.findall(r"`(tests/[^`]+)`", row[2])]
    assert len(named) >= 8
    assert [target for target in named if not (ROOT / target).is_file()] == []
