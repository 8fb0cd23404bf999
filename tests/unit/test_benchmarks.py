"""The benchmark of the card: it says so when there is none, and its script works as far as a CPU can show."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import cuda


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_a_card_it_says_so_and_measures_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cuda.main(["--json", str(tmp_path / "report.json")]) == 2
    assert "No CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rehearsal_fills_the_whole_table(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        assert cuda.main(["--rehearse", "--repeats", "1", "--json", str(tmp_path / "report.json")]) == 0
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["golden"][0]["within_limits"]
    rows = report["forward"]["rows"]
    assert {(row["path"], row["batch"]) for row in rows} == {(p, b) for p in ("plain", "fast") for b in (1, 2)}
    assert all(row["seconds"] > 0 and row["largest_logit_difference"] < 3e-4 for row in rows)
    assert report["forward"]["gflop_fast"] < report["forward"]["gflop_published"]
    assert report["resident"]["start"]["load_both_seconds"] > 0
    assert all(report["resident"]["start"][f"first_pass_rmbg_batch_{batch}_seconds"] > 0 for batch in (1, 2, 4))
    assert report["resident"]["job_2x2_1024"]["median_seconds"] > 0


def test_a_part_that_fails_loses_no_other_and_is_seen_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(cuda, "search", search)
    threads = torch.get_num_threads()
    try:
        status = cuda.main(
            ["--rehearse", "--only", "search", "profile", "--batches", "1", "--json", str(tmp_path / "report.json")]
        )
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(True)
    assert status == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failed"] == {"search": "RuntimeError: no room"}
    names = {row["name"] for row in report["profile"]["1"]["modules"]}
    assert {"backbone", "decoder", "squeeze"} <= names
    assert report["profile"]["1"]["kernels"]
    assert "no room" in capsys.readouterr().out
