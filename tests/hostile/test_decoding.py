"""The corpus and seeded mutations through the decoder, in processes that a crash, a hang or a bomb may kill."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.hostile import damaged, metadata, odd, oversized, strangers
from tests.hostile.building import Case, Right
from tests.hostile.corpus import corpus
from tests.hostile.decoder import HANG_S
from tests.processes import ROOT

PARTS = {"damaged": damaged, "oversized": oversized, "metadata": metadata, "odd": odd, "strangers": strangers}
#: Most memory that any file of the corpus may take beyond what the process has (bytes). They are small pictures all.
PEAK_BYTES = 300 * 2**20


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tests.hostile.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def decoded() -> dict[str, dict[str, Any]]:
    """What became of each file, by its name; those after one that killed the decoder are missing."""
    done = run("decoder")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {line["name"]: line for line in lines}
    if done.returncode or len(found) < len(corpus()):
        victim = corpus()[len(found)].name if len(found) < len(corpus()) else "the end"
        pytest.fail(f"the decoder died ({done.returncode}) of {victim}:\n{done.stderr[-3000:]}")
    return found


def test_the_corpus_is_large() -> None:
    assert len(corpus()) >= 300


@pytest.mark.parametrize("part", PARTS)
def test_every_file_gives_its_picture_or_its_code(decoded: dict[str, dict[str, Any]], part: str) -> None:
    problems = [problem for case in PARTS[part].cases() if (problem := mistake(case, decoded[case.name]))]
    assert problems == []


def mistake(case: Case, found: dict[str, Any]) -> str | None:
    """What is wrong about a file's outcome, or None."""
    if "raised" in found:
        return f"{case.name} raised {found['raised']}"
    if isinstance(case.outcome, Right):
        wrong = found.get("wrong") or found.get("detail")
        return f"{case.name}: {wrong}" if wrong else None
    if case.outcome is not None and found.get("code") != case.outcome:
        return f"{case.name} gave {found.get('code') or found['size']} instead of {case.outcome}"
    return None


def test_no_file_takes_long_or_much_memory(decoded: dict[str, dict[str, Any]]) -> None:
    assert [name for name, found in decoded.items() if found["seconds"] > HANG_S] == []
    assert [name for name, found in decoded.items() if found["peak_bytes"] > PEAK_BYTES] == []


def test_mutations_of_good_files_give_a_picture_or_a_code() -> None:
    done = run("fuzz", "--examples=1500")
    assert done.returncode == 0, done.stderr[-5000:]
    assert "no crash" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webp"])
def test_a_picture_at_the_limit_stays_within_its_memory(kind: str) -> None:
    done = run("limit", kind)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["pixels"] == 64_000_000
    assert report["peak_bytes"] <= report["promised_bytes"], report
