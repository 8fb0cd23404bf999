"""What the client sends, when it tries again and when it does not; against a real server on loopback."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from client import CutoutClient, CutoutError
from tests.flaky_server import Answer, FlakyServer, problem
from tests.redis_server import free_port

ENVELOPE = {"job_id": "j1", "id": 7, "status": "queued", "progress": {"done": 0, "total": 2}, "cells": {}}
ACCEPTED = Answer(202, ENVELOPE)


class Client(CutoutClient):
    """Notes its pauses instead of making them."""

    def __init__(self, url: str, api_key: str | None = None, retry_s: float = 60) -> None:
        self.pauses: list[float] = []
        super().__init__(url, api_key, timeout_s=10, retry_s=retry_s, sleep=self.pauses.append)


@pytest.fixture
def client(server: FlakyServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.mark.parametrize(("status", "code"), [(503, "queue_full"), (429, "rate_limited")])
def test_a_refused_job_is_sent_again_after_the_time_that_the_service_asked_for(
    server: FlakyServer, client: Client, status: int, code: str
) -> None:
    refusal = problem(status, code, Retry_After="7")
    server.plan("POST", "/process", refusal, refusal, ACCEPTED)
    assert client.submit(7, front=b"picture").job_id == "j1"
    assert client.pauses == [7, 7]


def test_a_job_whose_answer_was_lost_is_sent_again_as_the_same_request(server: FlakyServer, client: Client) -> None:
    server.plan("POST", "/process", Answer(is_dropped=True), Answer(502, b"gateway"), ACCEPTED)
    client.submit(7, front=b"picture", options={"proofs": True})
    keys = {asked.headers["Idempotency-Key"] for asked in server.asked}
    assert len(server.asked) == 3
    assert len(keys) == 1
    assert len({asked.body for asked in server.asked}) == 1
    client.submit(7, front=b"picture")
    assert server.asked[-1].headers["Idempotency-Key"] not in keys


def test_a_date_in_retry_after_counts_too(server: FlakyServer, client: Client) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.plan("POST", "/process", problem(503, "queue_full", Retry_After=at), ACCEPTED)
    client.submit(7, front=b"picture")
    assert 20 < client.pauses[0] <= 30


def test_retry_after_zero_is_no_licence_to_hammer(server: FlakyServer, client: Client) -> None:
    server.plan("GET", "/jobs/j1", problem(503, "redis_unavailable", Retry_After="0"), Answer(200, ENVELOPE))
    client.get("j1")
    assert client.pauses == [0.1]


def test_a_later_time_than_the_client_has_patience_for_ends_it_at_once(server: FlakyServer, client: Client) -> None:
    server.plan("POST", "/process", problem(429, "rate_limited", Retry_After="3600"))
    with pytest.raises(CutoutError) as caught:
        client.submit(7, front=b"picture")
    assert (caught.value.code, caught.value.retry_after_s, caught.value.retryable) == ("rate_limited", 3600, True)
    assert client.pauses == []
    assert len(server.asked) == 1


def test_without_retry_after_the_pauses_grow_up_to_a_limit(server: FlakyServer, client: Client) -> None:
    server.plan("GET", "/jobs/j1", *[problem(503, "redis_unavailable")] * 9, Answer(200, ENVELOPE))
    client.get("j1")
    assert len(client.pauses) == 9
    assert 0.1 < client.pauses[0] <= 0.25
    assert all(0.5 * 10 <= pause <= 10 for pause in client.pauses[-3:])


def test_a_request_that_is_wrong_is_sent_once_and_the_error_says_all(server: FlakyServer, client: Client) -> None:
    server.plan("POST", "/process", problem(422, "invalid_request"))
    with pytest.raises(CutoutError, match=r"^invalid_request: why \(request req-1\)$") as caught:
        client.submit(7, front=b"picture")
    error = caught.value
    assert (error.status, error.detail, error.request_id, error.retryable) == (422, "why", "req-1", False)
    assert len(server.asked) == 1


def test_a_retry_whose_answer_was_lost_is_sent_again_as_the_same_request(server: FlakyServer, client: Client) -> None:
    server.plan("POST", "/jobs/j1/retry", Answer(is_dropped=True), problem(503, "queue_full"), ACCEPTED)
    assert client.retry("j1", "back_rmbg", "front_rmbg").job_id == "j1"
    assert server.paths() == ["POST /jobs/j1/retry?cell=back_rmbg&cell=front_rmbg"] * 3
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked}) == 1
    client.retry("j1", idempotency_key="mine")
    client.retry("j1")
    keys = [asked.headers["Idempotency-Key"] for asked in server.asked[2:]]
    assert (keys[1], len(set(keys))) == ("mine", 3)


def test_an_absent_service_is_named_after_the_patience_is_over() -> None:
    port = free_port()
    with CutoutClient(f"http://127.0.0.1:{port}", retry_s=0.5) as client, pytest.raises(CutoutError) as caught:
        client.get("j1")
    assert str(caught.value) == f"connection_failed: http://127.0.0.1:{port}/jobs/j1: nobody answers there"
    assert caught.value.retryable


def test_a_redirect_is_an_error_that_says_where_to_not_a_lost_body(server: FlakyServer, client: Client) -> None:
    server.plan("POST", "/process", Answer(301, b"", {"Location": "https://elsewhere.test/process"}))
    with pytest.raises(CutoutError, match=r"status 301: https://elsewhere\.test/process") as caught:
        client.submit(7, front=b"picture")
    assert caught.value.code == "unexpected_reply"


@pytest.mark.parametrize("body", [b"<html>not us</html>", b"[1, 2]", b'{"job_id": 5}'])
def test_somebody_elses_answer_is_an_error_not_a_crash(server: FlakyServer, client: Client, body: bytes) -> None:
    server.plan("GET", "/jobs/j1", Answer(200, body))
    with pytest.raises(CutoutError) as caught:
        client.get("j1")
    assert caught.value.code == "unexpected_reply"


def test_the_key_goes_to_the_service_and_to_nobody_else(
    server: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password wrong\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with FlakyServer() as elsewhere, Client(server.url, "secret") as client:
        server.plan("GET", "/outputs/a.bin", Answer(302, b"", {"Location": f"{elsewhere.url}/b"}))
        elsewhere.plan("GET", "/b", Answer(200, b"abc"))
        for url in (f"{elsewhere.url}/b", f"{server.url}/outputs/a.bin"):
            assert client.download_file(url, tmp_path / "file").read_bytes() == b"abc"
        assert server.asked[0].headers["Authorization"] == "Bearer secret"
        assert [asked.path for asked in elsewhere.asked] == ["/b", "/b"]
        assert not any("secret" in str(asked.headers) for asked in elsewhere.asked)


def test_addresses_go_as_json_and_files_as_a_form(server: FlakyServer, client: Client, tmp_path: Path) -> None:
    server.plan("POST", "/process", ACCEPTED)
    client.submit(7, front="https://example.com/f.png", options={"proofs": True}, cancel_after_s=90, fresh=True)
    sent = server.asked[0]
    assert json.loads(sent.body) == {
        "id": 7,
        "output": {"front": "https://example.com/f.png"},
        "options": {"proofs": True},
    }
    names = ("Prefer", "Cancel-After", "Cache-Control")
    assert [sent.headers[name] for name in names] == ["respond-async", "90s", "no-cache"]
    (tmp_path / "private name.jpg").write_bytes(b"JPEG bytes")
    client.submit("a", front="https://example.com/f.png", back=tmp_path / "private name.jpg")
    form = server.asked[1].body
    assert b'name="front"\r\n\r\nhttps://example.com/f.png\r\n' in form
    assert b'name="back"; filename="back"\r\n\r\nJPEG bytes\r\n' in form
    assert b"private" not in form


@pytest.mark.parametrize(("status", "code"), [(422, "source_not_an_image"), (504, "job_expired")])
def test_a_repeated_key_whose_job_has_ended_gives_that_job(
    server: FlakyServer, client: Client, status: int, code: str
) -> None:
    ended = {**ENVELOPE, "status": "failed", "error": {"code": code, "detail": "no picture"}}
    server.plan("GET", "/jobs/j1", Answer(200, ended))
    refused = problem(status, code)
    assert isinstance(refused.body, dict)
    server.plan("POST", "/process", Answer(status, {**refused.body, "job_id": "j1"}))
    job = client.submit(7, front=b"picture")
    assert (job.status, job.job_id) == ("failed", "j1")
    assert client.pauses == []
    with pytest.raises(CutoutError) as caught:
        job.raise_for_status()
    assert (caught.value.code, caught.value.job_id) == (code, "j1")
    server.plan("POST", "/process", Answer(200, {"id": 7, "job_id": "j1", "status": "succeeded"}))
    assert client.submit(7, front=b"picture").job_id == "j1"


def test_a_list_follows_its_cursor_only_as_far_as_it_is_read(server: FlakyServer, client: Client) -> None:
    first = {"jobs": [{**ENVELOPE, "job_id": name} for name in ("a", "b")], "next_cursor": "c1"}
    server.plan("GET", "/jobs", Answer(200, first), Answer(200, {"jobs": [{**ENVELOPE, "job_id": "c"}]}))
    jobs = client.list(status=["failed", "partial"], page=2)
    assert [next(jobs).job_id, next(jobs).job_id] == ["a", "b"]
    assert server.paths() == ["GET /jobs?status=failed&status=partial&limit=2"]
    assert [job.job_id for job in jobs] == ["c"]
    assert server.paths()[1:] == ["GET /jobs?status=failed&status=partial&limit=2&cursor=c1"]


def test_health_of_a_service_that_is_not_ready_is_an_answer(server: FlakyServer, client: Client) -> None:
    body = {"status": "not_ready", "models": {"rmbg": {"status": "loading"}}, "queue": {"depth": 3}}
    server.plan("GET", "/health", Answer(503, body, {"Retry-After": "5"}))
    health = client.health()
    assert (health.status, health.models["rmbg"]["status"]) == ("not_ready", "loading")
    assert client.pauses == []


def test_fields_of_a_newer_service_are_kept(server: FlakyServer, client: Client) -> None:
    server.plan("GET", "/jobs/j1", Answer(200, {**ENVELOPE, "colour": "teal"}))
    assert (client.get("j1").model_extra or {})["colour"] == "teal"


def test_a_job_id_never_leads_to_another_route(server: FlakyServer, client: Client) -> None:
    with pytest.raises(CutoutError) as caught:
        client.delete("../outputs/x")
    assert caught.value.code == "job_not_found"
    assert server.asked == []


@pytest.mark.parametrize(("url", "key"), [("127.0.0.1:8001", None), ("ftp://x", None), ("http://x", "a\nb")])
def test_an_address_or_key_that_cannot_be_used_is_refused_at_once(url: str, key: str | None) -> None:
    with pytest.raises(ValueError, match=r"base_url|api_key"):
        CutoutClient(url, key)
