"""`.env.example` lists every setting with its default and its meaning, and nothing that nobody reads."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.settings import Settings

ROOT = Path(__file__).parents[2]
#: Read by docker-compose.yml or the Makefile, never by our Python code.
COMPOSE_ONLY = {
    "APP_GID",
    "APP_UID",
    "BIND_ADDRESS",
    "COMPOSE_PROJECT_NAME",
    "PIP_EXTRA_INDEX_URL",
    "PYTHON_IMAGE",
    "REDIS_IMAGE",
    "REDIS_MAXMEMORY",
    "STOP_GRACE_PERIOD",
}
_LINE = re.compile(r"^#?([A-Z][A-Z0-9_]*)=(.*)$")


def _read() -> dict[str, tuple[str, str]]:
    """Name -> (value, the comment line above it), in the file's order; a commented-out line counts."""
    found: dict[str, tuple[str, str]] = {}
    above = ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := _LINE.match(line):
            assert match[1] not in found, f"{match[1]} is listed twice"
            found[match[1]] = (match[2], above)
        elif line.startswith("# "):
            above = line.removeprefix("# ")
    return found


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def test_every_setting_is_listed_and_nothing_unknown_is() -> None:
    assert set(_read()) - COMPOSE_ONLY == {name.upper() for name in Settings.model_fields}


def test_compose_only_variables_are_listed_and_used() -> None:
    readers = (ROOT / "docker-compose.yml").read_text() + (ROOT / "Makefile").read_text()
    listed = _read()
    for name in COMPOSE_ONLY:
        assert name in listed
        assert name in readers


def test_the_keys_a_person_must_set_come_first() -> None:
    assert list(_read())[:3] == ["GEMINI_API_KEY", "HF_TOKEN", "BASE_URL"]


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_default_and_meaning_agree_with_the_settings(name: str) -> None:
    field = Settings.model_fields[name]
    value, meaning = _read()[name.upper()]
    assert value == _as_text(field.default)
    assert field.description is not None
    assert meaning.startswith(field.description.split(";")[0])


def test_the_example_as_it_is_gives_exactly_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (value, _) in _read().items():
        monkeypatch.setenv(name, value)
    for name, field in Settings.model_fields.items():
        assert getattr(Settings(), name) == field.default, name
