"""Waiting for a job: events over broken connections, and asking again and again where there are none."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from client import CutoutClient, CutoutError
from client.events import parse_events
from tests.flaky_server import Answer, FlakyServer, problem

PATH = "/jobs/j1/events"
JOB: dict[str, Any] = {"job_id": "j1", "id": 7, "progress": {"done": 2, "total": 2}, "cells": {}}
OPEN, ENDED = Answer(200, {**JOB, "status": "processing"}), Answer(200, {**JOB, "status": "succeeded"})
EVENTS: list[tuple[str, str, dict[str, Any]]] = [
    ("1-0", "status", {"type": "status", "status": "queued"}),
    ("2-0", "cell", {"type": "cell", "cell": "front_rmbg", "status": "processing"}),
    ("3-0", "cell", {"type": "cell", "cell": "front_rmbg", "status": "succeeded", "url": "http://x/\u00e9.png"}),
    ("4-0", "cell", {"type": "cell", "cell": "back_rmbg", "status": "failed"}),
    ("5-0", "status", {"type": "status", "status": "partial", "final": True}),
]


def stream(events: list[tuple[str, str, dict[str, Any]]], line_end: str = "\n") -> bytes:
    text = ": hello\n\nretry: 1000\n\n"
    for event_id, name, data in events:
        text += f"id: {event_id}\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n: heartbeat\n\n"
    return text.replace("\n", line_end).encode()


def answer(events: list[tuple[str, str, dict[str, Any]]], **how: Any) -> Answer:
    return Answer(200, stream(events), {"Content-Type": "text/event-stream"}, has_length=False, **how)


@pytest.fixture
def client(server: FlakyServer) -> Iterator[CutoutClient]:
    with CutoutClient(server.url, retry_s=2) as client:
        yield client


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_wherever_the_stream_is_cut_into_pieces_the_events_are_the_same(line_end: str) -> None:
    whole = stream(EVENTS, line_end)
    single_bytes = [whole[at : at + 1] for at in range(len(whole))]
    for pieces in ([whole], single_bytes, *([whole[:at], whole[at:]] for at in range(len(whole)))):
        assert [(event.id, event.type, event.data) for event in parse_events(pieces)] == EVENTS


def test_what_is_no_json_object_is_passed_over() -> None:
    text = b'data: {"a":\ndata: 1}\n\ndata: nonsense\n\ndata: [1]\n\nevent: cell\n\ndata: {"b": 2}\n\n'
    text += b'data: {"never ended": 1}\n'
    assert [event.data for event in parse_events([text])] == [{"a": 1}, {"b": 2}]


def test_a_broken_stream_goes_on_after_the_last_event_that_was_seen(server: FlakyServer, client: CutoutClient) -> None:
    server.plan("GET", PATH, answer(EVENTS[:2]), Answer(is_dropped=True), answer(EVENTS[2:]))
    assert [event.id for event in client.events("j1")] == ["1-0", "2-0", "3-0", "4-0", "5-0"]
    assert [asked.headers.get("Last-Event-ID") for asked in server.asked] == [None, "2-0", "2-0"]


def test_events_can_be_taken_up_where_an_earlier_reader_stopped(server: FlakyServer, client: CutoutClient) -> None:
    server.plan("GET", PATH, answer(EVENTS[3:]))
    assert [event.is_final for event in client.events("j1", after="3-0")] == [False, True]
    assert server.asked[0].headers["Last-Event-ID"] == "3-0"


def test_a_job_that_ended_with_the_last_event_seen_has_no_more(server: FlakyServer, client: CutoutClient) -> None:
    server.plan("GET", PATH, Answer(204))
    assert list(client.events("j1", after="5-0")) == []
    assert len(server.asked) == 1


def test_a_stream_that_never_comes_to_an_end_gives_up(server: FlakyServer, client: CutoutClient) -> None:
    server.plan("GET", PATH, answer([]))
    with pytest.raises(CutoutError) as caught:
        list(client.events("j1"))
    assert caught.value.code == "connection_failed"
    assert len(server.asked) > 1


def test_waiting_reads_the_events_and_then_the_job_once(server: FlakyServer, client: CutoutClient) -> None:
    server.plan("GET", PATH, answer(EVENTS))
    server.plan("GET", "/jobs/j1", ENDED)
    done: list[int] = []
    assert client.wait("j1", on_progress=done.append).status == "succeeded"
    assert server.paths() == [f"GET {PATH}", "GET /jobs/j1"]
    assert done == [1, 2]


def test_a_service_without_events_is_asked_again_and_again(server: FlakyServer, client: CutoutClient) -> None:
    server.plan("GET", "/jobs/j1", OPEN, OPEN, ENDED)
    assert client.wait("j1").status == "succeeded"
    assert server.paths() == [f"GET {PATH}", *["GET /jobs/j1"] * 3]
    client.wait("j1")
    assert server.paths()[4:] == ["GET /jobs/j1"]  # it is not asked for events again


def test_a_service_that_has_no_room_for_another_stream_is_asked_instead(
    server: FlakyServer, client: CutoutClient
) -> None:
    server.plan("GET", PATH, problem(503, "too_many_streams", Retry_After="60"), answer(EVENTS))
    server.plan("GET", "/jobs/j1", OPEN, ENDED)
    assert client.wait("j1").status == "succeeded"
    assert server.paths() == [f"GET {PATH}", *["GET /jobs/j1"] * 2]
    client.wait("j1")
    assert f"GET {PATH}" in server.paths()[3:]  # the next job may find room


def test_waiting_for_a_job_that_is_not_there_says_so(server: FlakyServer, client: CutoutClient) -> None:
    server.plan("GET", PATH, problem(404, "job_not_found"))
    with pytest.raises(CutoutError) as caught:
        client.wait("j1")
    assert caught.value.code == "job_not_found"


def test_a_wait_ends_in_time_and_names_the_job(server: FlakyServer, client: CutoutClient) -> None:
    server.plan("GET", "/jobs/j1", OPEN)
    started = time.monotonic()
    with pytest.raises(CutoutError) as caught:
        client.wait("j1", timeout_s=0.6)
    assert (caught.value.code, caught.value.job_id) == ("wait_timeout", "j1")
    assert time.monotonic() - started < 10
    assert len(server.asked) >= 2
