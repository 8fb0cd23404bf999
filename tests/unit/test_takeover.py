"""A finished cell under another job's names, and the files that jobs leave."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from shared.errors import OutputNotFound
from shared.jobs import CellRecord, CellStatus, Job, Source, new_job
from shared.storage import FolderStorage
from shared.takeover import take_over

OLD, NEW = "a" * 32, "b" * 32


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "outputs", "http://service.test")


@pytest.fixture
def job() -> Job:
    sources = {side: Source(kind="url", url="http://x/") for side in ("front", "back")}
    return new_job(job_id=NEW, client_id="shirt_7", sources=sources, models=("rmbg",))  # type: ignore[arg-type]


@pytest.fixture
def record(storage: FolderStorage) -> CellRecord:
    """front_rmbg of an old job, with a print file and a small copy for review."""
    names = {kind: f"design_3_{OLD}_front_rmbg{kind}.png" for kind in ("", "_print")}
    for kind, name in names.items():
        storage.write_atomic(name, f"old{kind}".encode())
    storage.write_work(OLD, "front_rmbg-alpha.npy", b"alpha")
    storage.write_work(OLD, "front_birefnet-alpha.npy", b"another's")
    files = {"print": storage.url(names["_print"])}
    return CellRecord(status=CellStatus.SUCCEEDED, url=storage.url(names[""]), bytes=3, seconds=2.5, files=files)


def test_a_cell_taken_over_has_the_new_jobs_names_also_on_the_other_side(
    storage: FolderStorage, job: Job, record: CellRecord
) -> None:
    taken = take_over(storage, record, (OLD, "front", "rmbg"), job, "back")
    assert taken is not None
    new, work_files = taken
    assert new.url == f"http://service.test/outputs/design_shirt_7_{NEW}_back_rmbg.png"
    assert new.files == {"print": f"http://service.test/outputs/design_shirt_7_{NEW}_back_rmbg_print.png"}
    assert (new.cached, new.seconds, new.bytes, new.status) == (True, 0.0, 3, CellStatus.SUCCEEDED)
    assert record.cached is False
    assert storage.path(f"design_shirt_7_{NEW}_back_rmbg_print.png").read_text() == "old_print"
    assert work_files == 1
    assert storage.work_files(NEW) == ["back_rmbg-alpha.npy"]


def test_both_jobs_files_live_on_their_own(storage: FolderStorage, job: Job, record: CellRecord) -> None:
    take_over(storage, record, (OLD, "front", "rmbg"), job, "front")
    storage.remove_outputs(OLD)
    new = storage.path(f"design_shirt_7_{NEW}_front_rmbg.png")
    assert new.read_text() == "old"
    storage.write_atomic(new.name, b"new")  # computed again: the old name, had it stayed, would be untouched
    assert new.read_text() == "new"


def test_taking_over_twice_is_taking_over_once(storage: FolderStorage, job: Job, record: CellRecord) -> None:
    first = take_over(storage, record, (OLD, "front", "rmbg"), job, "front")
    assert take_over(storage, record, (OLD, "front", "rmbg"), job, "front") == first


@pytest.mark.parametrize("kind", ["", "_print"])
def test_a_cell_with_a_file_gone_cannot_be_taken_over(
    storage: FolderStorage, job: Job, record: CellRecord, kind: str
) -> None:
    storage.path(f"design_3_{OLD}_front_rmbg{kind}.png").unlink()
    assert take_over(storage, record, (OLD, "front", "rmbg"), job, "front") is None


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK])
def test_where_there_are_no_hard_links_files_are_copied(
    storage: FolderStorage, job: Job, record: CellRecord, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert take_over(storage, record, (OLD, "front", "rmbg"), job, "front") is not None
    assert storage.path(f"design_shirt_7_{NEW}_front_rmbg.png").read_text() == "old"
    storage.remove_outputs(OLD)
    with pytest.raises(OutputNotFound):
        storage.link_output(f"design_3_{OLD}_front_rmbg.png", f"design_3_{NEW}_front_rmbg.png")


def test_only_the_files_of_one_job_or_cell_are_removed(storage: FolderStorage) -> None:
    names = [
        f"design_3_{OLD}_front_rmbg.png",
        f"design_3_{OLD}_front_rmbg_print.png",
        f"design_3_{OLD}_front_rmbg2.png",
        f"design_3_{OLD}_back_rmbg.png",
        f"design_3_{NEW}_front_rmbg.png",
    ]
    for name in names:
        storage.write_atomic(name, b"x")
    (storage.outputs_dir / "notes.txt").write_text(OLD)
    storage.remove_outputs(OLD, cell="front_rmbg")
    assert sorted(p.name for p in storage.outputs_dir.iterdir()) == sorted([*names[2:], "notes.txt"])
    storage.remove_outputs(OLD)
    assert sorted(p.name for p in storage.outputs_dir.iterdir()) == [names[4], "notes.txt"]
