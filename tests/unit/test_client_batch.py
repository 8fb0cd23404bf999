"""What a second run does and what it leaves alone; against a server that counts the jobs."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client import CutoutClient, CutoutError
from client.batch import Batch, Outcome, in_parallel
from client.pairs import InputError, Pair
from client.state import STATE_FILE, Entry, State
from tests.flaky_server import Answer, FlakyServer, problem

PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)


class Service:
    """A server that makes every job succeed, and a batch to try on it."""

    def __init__(self, server: FlakyServer, client: CutoutClient, folder: Path) -> None:
        self.server, self.client, self.folder = server, client, folder
        self.picture = folder / "front.png"
        self.picture.write_bytes(b"picture")
        self.out = folder / "out"
        server.plan("POST", "/process", Answer(202, self.job("j1", "queued")))
        server.plan("GET", "/jobs/j1", Answer(200, self.job("j1", "succeeded")))
        server.plan("GET", "/outputs/j1.png", Answer(200, PNG))

    def job(self, job_id: str, status: str, **cells: Any) -> dict[str, Any]:
        made = {"status": "succeeded", "url": f"{self.server.url}/outputs/{job_id}.png", "bytes": len(PNG)}
        return {"job_id": job_id, "id": 7, "status": status, "cells": cells or {"front_rmbg": made}}

    def run(self, options: dict[str, Any] | None = None, **how: Any) -> Outcome:
        pair = Pair(7, front=self.picture)
        with State(self.out) as state:
            return Batch(self.client, self.out, state, options or {}, **how).do(pair, lambda done: None)

    def sent(self) -> int:
        """How many jobs were sent so far."""
        return self.server.paths().count("POST /process")

    def remember(self, **values: Any) -> None:
        """Change what the state says about the pair, as a run that was killed would have left it."""
        with State(self.out) as state:
            entry = state.get(7)
            assert entry is not None
            state.record(Entry(**{**vars(entry), **values}))


@pytest.fixture
def service(server: FlakyServer, tmp_path: Path) -> Iterator[Service]:
    with CutoutClient(server.url, retry_s=0.5) as client:
        yield Service(server, client, tmp_path)


def test_a_pair_that_is_done_is_not_sent_again(service: Service) -> None:
    first = service.run()
    assert (first.status, first.is_kept) == ("succeeded", False)
    assert (service.out / "7_front_rmbg.png").read_bytes() == PNG
    asked = len(service.server.asked)
    second = service.run()
    assert (second.status, second.is_kept, second.rows) == ("succeeded", True, first.rows)
    assert len(service.server.asked) == asked


@pytest.mark.parametrize("change", ["picture", "options", "no resume"])
def test_another_picture_or_other_options_are_another_task(service: Service, change: str) -> None:
    service.run()
    if change == "picture":
        service.picture.write_bytes(b"another")
    service.run({"proofs": True} if change == "options" else None, resume=change != "no resume")
    assert service.sent() == 2
    keys = {asked.headers["Idempotency-Key"] for asked in service.server.asked if asked.method == "POST"}
    assert len(keys) == 2


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_file_that_is_missing_is_fetched_again_without_another_job(service: Service, damage: str) -> None:
    service.run()
    path = service.out / "7_front_rmbg.png"
    path.unlink() if damage == "gone" else path.write_bytes(PNG[:100])
    assert not service.run().is_kept
    assert path.read_bytes() == PNG
    assert service.sent() == 1


def test_a_missing_file_that_the_service_has_removed_is_made_again(service: Service) -> None:
    service.run()
    (service.out / "7_front_rmbg.png").unlink()
    service.server.plan("GET", "/outputs/j1.png", problem(410, "output_expired"))
    service.server.plan("POST", "/process", Answer(202, service.job("j2", "queued")))
    service.server.plan("GET", "/jobs/j2", Answer(200, service.job("j2", "succeeded")))
    service.server.plan("GET", "/outputs/j2.png", Answer(200, PNG))
    outcome = service.run()
    assert (outcome.status, outcome.rows[0].job_id) == ("succeeded", "j2")


def test_a_run_that_was_killed_before_the_answer_sends_the_same_key(service: Service) -> None:
    service.run()
    key = service.server.asked[0].headers["Idempotency-Key"]
    service.remember(step="sending", job_id="", status="", files={})
    assert service.run().status == "succeeded"
    assert [asked.headers["Idempotency-Key"] for asked in service.server.asked if asked.method == "POST"] == [key] * 2


def test_a_run_that_was_killed_while_waiting_takes_its_job_up(service: Service) -> None:
    service.run()
    service.remember(step="sent", status="", files={})
    service.server.plan(
        "GET",
        "/jobs/j1",
        *[Answer(200, service.job("j1", "processing"))] * 2,
        Answer(200, service.job("j1", "succeeded")),
    )
    assert service.run().status == "succeeded"
    assert service.sent() == 1


def test_a_job_that_is_no_longer_on_record_is_sent_again(service: Service) -> None:
    service.run()
    service.remember(step="sent", status="", files={})
    service.server.plan("GET", "/jobs/j1", problem(404, "job_not_found"), Answer(200, service.job("j1", "succeeded")))
    assert service.run().status == "succeeded"
    assert service.sent() == 2


def partial(service: Service, status: str) -> Answer:
    made = {"status": "succeeded", "url": f"{service.server.url}/outputs/j1.png", "bytes": len(PNG)}
    failed = {"status": "failed", "error": {"code": "inference_failed", "detail": "x", "retryable": True}}
    return Answer(200, service.job("j1", status, front_rmbg=made, front_birefnet=failed))


def test_of_a_partial_job_only_the_failed_cells_are_done_again(service: Service) -> None:
    service.server.plan("GET", "/jobs/j1", partial(service, "partial"))
    first = service.run()
    assert (first.status, first.is_good) == ("partial", False)
    assert [row.error_code for row in first.rows] == ["", "inference_failed"]
    service.server.plan("POST", "/jobs/j1/retry", Answer(202, service.job("j2", "queued")))
    service.server.plan("GET", "/jobs/j2", Answer(200, service.job("j2", "succeeded")))
    service.server.plan("GET", "/outputs/j2.png", Answer(200, PNG))
    second = service.run()
    assert (second.is_good, second.rows[0].job_id) == (True, "j2")
    assert service.sent() == 1


def test_a_run_killed_while_it_asked_for_a_retry_asks_for_the_same_one_again(service: Service) -> None:
    service.server.plan("GET", "/jobs/j1", partial(service, "partial"))
    service.run()
    before = (service.out / "state.jsonl").read_bytes()
    service.server.plan("POST", "/jobs/j1/retry", Answer(202, service.job("j2", "queued")))
    service.server.plan("GET", "/jobs/j2", Answer(200, service.job("j2", "succeeded")))
    service.server.plan("GET", "/outputs/j2.png", Answer(200, PNG))
    for _ in range(2):
        service.run()
        (service.out / "state.jsonl").write_bytes(before)  # as if it had never had the answer
    keys = [asked.headers["Idempotency-Key"] for asked in service.server.asked if asked.path.endswith("/retry")]
    assert (len(keys), len(set(keys))) == (2, 1)


@pytest.mark.parametrize("refusal", [problem(404, "not_found"), problem(410, "source_expired")])
def test_a_partial_job_that_cannot_be_retried_is_sent_again(service: Service, refusal: Answer) -> None:
    service.server.plan("GET", "/jobs/j1", partial(service, "partial"))
    service.run()
    service.server.plan("POST", "/jobs/j1/retry", refusal)
    service.run()
    assert service.sent() == 2


def test_a_failed_pair_is_sent_again_under_a_new_key(service: Service) -> None:
    service.server.plan("POST", "/process", problem(422, "invalid_request"), Answer(202, service.job("j1", "queued")))
    first = service.run()
    assert (first.status, first.rows[0].error_code, first.rows[0].error_detail) == ("failed", "invalid_request", "why")
    assert service.run().is_good


def test_a_wrong_api_key_ends_the_run_instead_of_failing_every_pair(service: Service) -> None:
    service.server.plan("POST", "/process", problem(401, "unauthorized"))
    with pytest.raises(CutoutError, match=r"^unauthorized"):
        service.run()


def test_a_picture_that_cannot_be_read_costs_only_itself(service: Service) -> None:
    service.picture.unlink()
    outcome = service.run()
    assert (outcome.status, outcome.rows[0].error_code) == ("failed", "file_error")
    assert outcome.rows[0].error_detail == f"{service.picture}: No such file or directory"
    assert service.sent() == 0


def test_what_a_killed_run_was_downloading_is_cleared_away(service: Service) -> None:
    service.out.mkdir()
    (service.out / ".7_front_rmbg.png.0123abcd.part").write_bytes(b"half")
    service.run()
    assert sorted(path.name for path in service.out.iterdir()) == ["7_front_rmbg.png", STATE_FILE]


# --- the state file -----------------------------------------------------------------------------------------------
def test_a_line_that_was_cut_short_costs_only_itself(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        state.record(Entry("1", "f", "ended", status="succeeded"))
        state.record(Entry("2", "f", "sent", job_id="j2"))
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes() + b'{"id": "2", "fingerpr')
    with State(tmp_path) as state:
        state.record(Entry("3", "f", "sending", key="k"))
    with State(tmp_path) as state:
        entries = [state.get(number) for number in (1, 2, 3)]
    assert [entry and entry.step for entry in entries] == ["ended", "sent", "sending"]
    assert [len(line) for line in path.read_bytes().splitlines()][2] == len(b'{"id": "2", "fingerpr')


def test_lines_of_another_version_are_passed_over(tmp_path: Path) -> None:
    tmp_path.joinpath(STATE_FILE).write_text('{"id": "1", "colour": "teal"}\n[1]\nnull\n\xff\n')
    with State(tmp_path) as state:
        assert state.get(1) is None


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with State(tmp_path), pytest.raises(InputError, match="another run is writing"):
        State(tmp_path)
    with State(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/state\.jsonl cannot be written"):
        State(tmp_path / "file")


# --- threads ------------------------------------------------------------------------------------------------------
def test_no_more_than_asked_run_at_once_and_every_result_comes() -> None:
    lock, barrier = threading.Lock(), threading.Barrier(3, timeout=20)
    running, most = 0, 0

    def do(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait()  # passes only when three run at once
        with lock:
            running -= 1
        return item * 10

    assert sorted(in_parallel(range(9), do, 3)) == [number * 10 for number in range(9)]
    assert most == 3


def test_an_error_of_ours_is_raised_not_swallowed() -> None:
    def do(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        list(in_parallel([1, 0, 1], do, 1))


def test_the_state_holds_no_pictures_and_no_key_of_the_service(service: Service) -> None:
    with CutoutClient(service.server.url, "secret-key") as client:
        service.client = client
        service.run()
    lines = (service.out / STATE_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == ["sending", "sent", "ended"]
    assert "secret-key" not in "".join(lines)
