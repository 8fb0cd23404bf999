"""Downloads are whole or not there, and never leave their folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client import CutoutClient, CutoutError, Job
from tests.flaky_server import Answer, FlakyServer, problem

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 400


@pytest.fixture
def client(server: FlakyServer) -> Iterator[CutoutClient]:
    with CutoutClient(server.url, retry_s=1) as client:
        yield client


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_that_was_cut_short_is_fetched_again(
    server: FlakyServer, client: CutoutClient, tmp_path: Path
) -> None:
    server.plan("GET", "/a.png", Answer(200, PNG, cut_at=30_000), Answer(is_dropped=True), Answer(200, PNG))
    client.download_file(f"{server.url}/a.png", tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == PNG
    assert names(tmp_path / "new") == ["a.png"]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("bad", "size", "reason"),
    [
        (Answer(200, PNG, cut_at=30_000), None, "the connection broke"),
        (Answer(200, PNG, cut_at=30_000, has_length=False), len(PNG), f"30000 of {len(PNG)} bytes"),
        (Answer(200, PNG), len(PNG) + 1, f"{len(PNG)} of {len(PNG) + 1} bytes"),
        (Answer(200, b"<html>Please log in</html>"), None, "no PNG file"),
    ],
    ids=["cut", "cut without a length", "another size than the job says", "not a PNG"],
)
def test_a_file_that_does_not_come_whole_leaves_the_old_one_alone(
    server: FlakyServer, client: CutoutClient, tmp_path: Path, bad: Answer, size: int | None, reason: str
) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    server.plan("GET", "/a.png", bad)
    with pytest.raises(CutoutError, match=reason) as caught:
        client.download_file(f"{server.url}/a.png", tmp_path / "a.png", size)
    assert caught.value.code == "download_incomplete"
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert names(tmp_path) == ["a.png"]


def test_an_output_that_is_gone_keeps_its_code(server: FlakyServer, client: CutoutClient, tmp_path: Path) -> None:
    server.plan("GET", "/a.png", problem(410, "output_expired"))
    with pytest.raises(CutoutError) as caught:
        client.download_file(f"{server.url}/a.png", tmp_path / "a.png")
    assert caught.value.code == "output_expired"
    assert names(tmp_path) == []


def job(server: FlakyServer, **changes: Any) -> Job:
    url = f"{server.url}/outputs/design_7_j1"
    return Job.model_validate(
        {
            "job_id": "j1",
            "id": 7,
            "status": "partial",
            "cells": {
                "front_rmbg": {
                    "status": "succeeded",
                    "url": f"{url}_front_rmbg.png?expires=1&signature=s",
                    "bytes": len(PNG),
                    "files": {"print": f"{url}_front_rmbg_print.png"},
                },
                "back_rmbg": {"status": "failed", "error": {"code": "inference_failed", "detail": "x"}},
            },
            "result": {"contact_sheet": f"{url}_front_contact_sheet.webp"},
            **changes,
        }
    )


def test_all_files_of_a_job_are_saved_under_its_own_id(
    server: FlakyServer, client: CutoutClient, tmp_path: Path
) -> None:
    for name, content in {
        "front_rmbg.png": PNG,
        "front_rmbg_print.png": PNG,
        "front_contact_sheet.webp": b"RIFF",
    }.items():
        server.plan("GET", f"/outputs/design_7_j1_{name}", Answer(200, content))
    files = client.download(job(server), tmp_path)
    assert {name: path.name for name, path in files.items()} == {
        "front_rmbg": "7_front_rmbg.png",
        "front_rmbg_print": "7_front_rmbg_print.png",
        "contact_sheet": "7_contact_sheet.webp",
    }
    assert names(tmp_path) == ["7_contact_sheet.webp", "7_front_rmbg.png", "7_front_rmbg_print.png"]
    assert "GET /outputs/design_7_j1_front_rmbg.png?expires=1&signature=s" in server.paths()


def test_an_address_that_has_ended_is_asked_for_anew(server: FlakyServer, client: CutoutClient, tmp_path: Path) -> None:
    old = job(server, result=None)
    for suffix in ("", "_print"):
        path = f"/outputs/design_7_j1_front_rmbg{suffix}.png"
        server.plan("GET", path, problem(410, "output_url_expired"), Answer(200, PNG))
    fresh = json.loads(old.model_dump_json().replace("signature=s", "signature=new"))
    server.plan("GET", "/jobs/j1", Answer(200, fresh))
    assert set(client.download(old, tmp_path)) == {"front_rmbg", "front_rmbg_print"}
    query = [path.partition("signature=")[2] for path in server.paths() if "signature" in path]
    assert query == ["s", "new"]


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "../../x"},
        {"cells": {"../x": {"status": "succeeded", "url": "http://127.0.0.1:9/x.png"}}},
        {"cells": {"front_rmbg": {"status": "succeeded", "url": "http://127.0.0.1:9/x.png%2F..%2Fy"}}},
        {"cells": {"front_rmbg": {"status": "succeeded", "files": {"/etc": "http://127.0.0.1:9/x.png"}}}},
        {"cells": {"front_rmbg": {"status": "succeeded", "url": "file:///etc/passwd.png"}}},
        {"cells": {"front_rmbg": {"status": "succeeded", "url": "x.png"}}},
    ],
)
def test_names_that_lead_out_of_the_folder_are_refused(
    server: FlakyServer, client: CutoutClient, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CutoutError) as caught:
        client.download(job(server, result=None, **changes), tmp_path / "out")
    assert caught.value.code == "unexpected_reply"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
