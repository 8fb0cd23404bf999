"""One call to Gemini: the real SDK against a server on loopback that answers everything that can come."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from shared.errors import ExtractionBusy, ExtractionError, StoreUnavailable
from shared.jobs import utc_now
from shared.settings import Settings, load_settings
from shared.store import Store
from tests import gemini_server as server
from tests.conftest import eventually
from tests.gemini_server import KEY, GeminiServer
from worker import gemini as module
from worker.gemini import ASPECTS, Gemini, Usage, nearest_aspect
from worker.turns import Turns

ROOT = Path(__file__).parents[2]
Make = Callable[..., Gemini]


@pytest.fixture
def make(settings: Settings, store: Store, remote: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes the caller, with settings of the test's own; pauses between tries are short."""
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)

    def made(**own: object) -> Gemini:
        values = settings.model_dump() | {"gemini_api_key": KEY, "gemini_base_url": remote.url, **own}
        mine = Settings(**values)
        return Gemini(mine, Turns(mine, store), "Extract the design.")

    return made


def ask(gemini: Gemini, usage: Usage | None = None) -> bytes:
    return gemini.extract(b"\xff\xd8picture", "image/jpeg", "4:5", usage or Usage(), lambda: None)


def error_of(gemini: Gemini, usage: Usage | None = None) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        ask(gemini, usage)
    return caught.value


def test_the_picture_and_the_prompt_go_out_and_the_answer_comes_back(make: Make, remote: GeminiServer) -> None:
    usage = Usage()
    remote.will(server.picture(b"the design", thought=b"a sketch"))
    assert ask(make(), usage) == b"the design"
    (asked,) = remote.requests
    assert (asked.model, asked.key, asked.picture) == ("gemini-3.1-flash-image", KEY, b"\xff\xd8picture")
    assert asked.prompt == "Extract the design."
    assert asked.body["generationConfig"]["imageConfig"] == {"aspectRatio": "4:5", "imageSize": "2K"}
    assert asked.body["generationConfig"]["responseModalities"] == ["TEXT", "IMAGE"]
    assert usage.calls == 1
    assert usage.tokens is not None
    assert usage.tokens.model_dump() == {"prompt": 1290, "candidates": 1150, "total": 2440}


def test_a_model_without_sizes_is_not_asked_for_one(make: Make, remote: GeminiServer) -> None:
    ask(make(gemini_image_size="default", gemini_model="gemini-2.5-flash-image"))
    assert remote.requests[0].body["generationConfig"]["imageConfig"] == {"aspectRatio": "4:5"}


def test_variables_meant_for_the_sdk_change_nothing(
    make: Make, remote: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "GOOGLE_API_KEY": "another-key",
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_CLOUD_PROJECT": "somebody",
        "GOOGLE_GENAI_API_VERSION": "v9",
        "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    ask(make())
    assert remote.requests[0].key == KEY


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        pytest.param(server.prompt_blocked("PROHIBITED_CONTENT"), "extraction_blocked", id="prompt prohibited"),
        pytest.param(server.prompt_blocked("SAFETY"), "extraction_blocked", id="prompt unsafe"),
        *(
            pytest.param(server.stopped(reason), "extraction_blocked", id=reason.lower())
            for reason in ("SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT", "RECITATION",
                           "IMAGE_RECITATION", "BLOCKLIST", "SPII")
        ),
        pytest.param(server.stopped("NO_IMAGE"), "extraction_empty", id="no image"),
        pytest.param(server.stopped("MAX_TOKENS"), "extraction_empty", id="too long"),
        pytest.param(server.thought_only(), "extraction_empty", id="a sketch only"),
        pytest.param(server.words("I cannot help with that."), "extraction_empty", id="a refusal in words"),
        pytest.param(server.raw(b'{"candidates": []}'), "extraction_empty", id="no candidates"),
        pytest.param(server.raw(b"{}"), "extraction_empty", id="an empty object"),
        pytest.param(server.raw(b"<html>hello</html>"), "extraction_bad_answer", id="no JSON"),
        pytest.param(server.raw(b'{"candidates": [{"content": {"parts": 7}}]}'), "extraction_bad_answer", id="odd"),
        pytest.param(server.raw(b'{"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", '
                                b'"data": "%%%"}}]}}]}'), "extraction_bad_answer", id="no base64"),
        pytest.param(server.raw(b""), "extraction_empty", id="an empty body"),
        pytest.param(server.declares(10**12), "extraction_bad_answer", id="a terabyte declared"),
        pytest.param(server.raw(b"", 302), "extraction_bad_answer", id="a redirect"),
        pytest.param(server.problem(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.",
            [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]),
            "extraction_unauthorized", id="an invalid key"),
        pytest.param(server.problem(401, "UNAUTHENTICATED", "no"), "extraction_unauthorized", id="401"),
        pytest.param(server.problem(403, "PERMISSION_DENIED", "no"), "extraction_unauthorized", id="403"),
        pytest.param(server.problem(400, "INVALID_ARGUMENT", "Unable to process input image"), "extraction_rejected",
            id="400"),
        pytest.param(server.problem(404, "NOT_FOUND", "models/x is not found"), "extraction_model_not_found", id="404"),
        # The request was received: the answer that got lost may be on the bill, and a second one would be as well.
        pytest.param(server.cut(), "extraction_unavailable", id="cut before the answer"),
        pytest.param(server.cut(b'{"candid'), "extraction_unavailable", id="cut in the answer"),
    ],
)  # fmt: skip
def test_what_trying_again_cannot_help_or_would_cost_again_is_asked_once_and_named(
    make: Make, remote: GeminiServer, reply: server.Reply, code: str
) -> None:
    remote.will(reply)
    usage = Usage()
    assert error_of(make(), usage).code == code
    assert len(remote.requests) == usage.calls == 1


def test_a_reason_to_stop_that_nobody_knows_yet_is_no_crash(make: Make, remote: GeminiServer) -> None:
    remote.will(server.stopped("BRAND_NEW_REASON"))
    assert error_of(make()).code in ("extraction_empty", "extraction_bad_answer")


def test_what_the_model_says_instead_of_drawing_is_told(make: Make, remote: GeminiServer) -> None:
    usage = Usage()
    remote.will(server.words("I cannot help\nwith that."))
    assert "I cannot help with that." in error_of(make(), usage).message
    assert usage.tokens is not None, "words are billed too"
    assert usage.tokens.total == 2440


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        pytest.param(server.quota(), "extraction_quota", id="429"),
        pytest.param(server.problem(500, "INTERNAL", "oops"), "extraction_unavailable", id="500"),
        pytest.param(server.problem(503, "UNAVAILABLE", "overloaded"), "extraction_unavailable", id="503"),
        pytest.param(server.raw(b"<html>bad gateway</html>", 502), "extraction_unavailable", id="502, no JSON"),
    ],
)
class TestTryingAgain:
    def test_it_ends_with_the_first_good_answer(
        self, make: Make, remote: GeminiServer, reply: server.Reply, code: str
    ) -> None:
        remote.will(reply, reply, server.picture(b"the design"))
        usage = Usage()
        assert ask(make(), usage) == b"the design"
        assert len(remote.requests) == usage.calls == 3

    def test_it_ends_after_so_many_tries(
        self, make: Make, remote: GeminiServer, reply: server.Reply, code: str
    ) -> None:
        remote.will(reply)
        assert error_of(make(gemini_tries=3)).code == code
        assert len(remote.requests) == 3  # and not three times the SDK's own


def test_the_pause_that_the_server_asks_for_is_kept(make: Make, remote: GeminiServer) -> None:
    remote.will(server.quota("0.6s"), server.problem(503, "UNAVAILABLE", "busy", Retry_After="1"), server.picture())
    ask(make())
    first, second, third = (asked.at for asked in remote.requests)
    assert second - first >= 0.6
    assert third - second >= 1


@pytest.mark.parametrize(("delay", "header"), [("0.1s", "1"), ("1s", "0"), ("1s", "soon"), ("never", "1")])
def test_of_two_pauses_that_are_asked_for_the_longer_one_is_kept(
    make: Make, remote: GeminiServer, delay: str, header: str
) -> None:
    remote.will(server.quota(delay, Retry_After=header), server.picture())
    ask(make())
    first, second = (asked.at for asked in remote.requests)
    assert second - first >= 1


def test_a_pause_that_is_asked_for_as_a_date_is_kept(make: Make, remote: GeminiServer) -> None:
    """Given a Retry-After that is a time an hour from now, then nothing is waited for: there are 90 s."""
    later = format_datetime(utc_now() + timedelta(hours=1), usegmt=True)
    remote.will(server.problem(503, "UNAVAILABLE", "closed", Retry_After=later))
    assert error_of(make()).code == "extraction_unavailable"
    assert len(remote.requests) == 1


@pytest.mark.parametrize("delay", ["0s", "0.1s"])
def test_a_short_pause_that_is_asked_for_is_no_reason_to_hammer(
    make: Make, remote: GeminiServer, monkeypatch: pytest.MonkeyPatch, delay: str
) -> None:
    gemini = make()
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.5)
    remote.will(server.quota(delay, Retry_After="0"), server.picture())
    ask(gemini)
    assert remote.requests[1].at - remote.requests[0].at >= 0.5


def test_a_pause_beyond_the_time_limit_is_not_waited_for(make: Make, remote: GeminiServer) -> None:
    remote.will(server.quota("53s"))
    started = time.monotonic()
    assert error_of(make(gemini_timeout_s=20)).code == "extraction_quota"
    assert time.monotonic() - started < 10
    assert len(remote.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(server.silence(), id="silence"),
        pytest.param(server.drip(), id="a dripping body"),
        pytest.param(server.drip(headers=True), id="dripping headers"),
    ],
)
def test_a_server_that_never_ends_is_left_on_time(make: Make, remote: GeminiServer, reply: server.Reply) -> None:
    remote.will(reply)
    started = time.monotonic()
    assert error_of(make(gemini_timeout_s=1)).code == "extraction_timeout"
    assert time.monotonic() - started < 10
    assert len(remote.requests) == 1


def test_a_proxy_of_the_environment_is_used_and_left_on_time_too(
    make: Make, remote: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", remote.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    gemini = make(gemini_base_url="http://gemini.test", gemini_timeout_s=2)
    remote.will(server.picture(b"the design"), server.drip())
    assert ask(gemini) == b"the design"
    started = time.monotonic()
    assert error_of(gemini).code == "extraction_timeout"
    assert time.monotonic() - started < 10


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port of four loopback addresses where nobody answers, as behind a firewall that drops what it gets."""
    with contextlib.ExitStack() as stack:
        port = 0
        for number in range(1, 5):
            listener = stack.enter_context(socket.socket())
            listener.bind((f"127.0.0.{number}", port))
            port = listener.getsockname()[1]
            listener.listen(0)
            for _ in range(3):  # more than the queue takes: the kernel drops the next
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex((f"127.0.0.{number}", port))
        yield port


def test_a_name_with_many_addresses_that_are_deaf_is_left_on_time(
    make: Make, deaf_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{number}", deaf_port)) for number in range(1, 5)]
    known = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: found if host == "deaf.test" else known(host, *rest, **more)
    )
    gemini = make(gemini_base_url=f"http://deaf.test:{deaf_port}", gemini_timeout_s=4)
    started = time.monotonic()
    assert error_of(gemini).code == "extraction_timeout"
    assert time.monotonic() - started < 12  # four times four seconds, without a limit for all of them


def test_an_endless_body_is_left_at_the_limit(
    make: Make, remote: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_LIMIT_BYTES", 4_000_000)
    remote.will(server.huge(200_000_000))
    assert error_of(make()).code == "extraction_bad_answer"
    assert remote.sent_bytes < 100_000_000  # what sockets buffer; not all of it


def test_nobody_there_is_asked_again_because_nothing_was_sent(make: Make) -> None:
    usage = Usage()
    error = error_of(make(gemini_base_url="http://127.0.0.1:1", gemini_tries=2), usage)
    assert error.code == "extraction_unavailable"
    assert usage.calls == 2


def test_calls_at_once_are_limited(make: Make, remote: GeminiServer) -> None:
    remote.will(server.held(server.picture()))
    gemini = make(gemini_calls_at_once=2)
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(ask, gemini) for _ in range(5)]
        eventually(lambda: len(remote.requests) == 2)
        assert not threading.Event().wait(0.3)
        assert len(remote.requests) == 2
        remote.release.set()
        assert all(answer.result(20) for answer in answers)
    assert len(remote.requests) == 5


def test_calls_a_minute_are_limited_across_workers(make: Make, remote: GeminiServer) -> None:
    ask(make(gemini_calls_per_minute=2))
    other = make(gemini_calls_per_minute=2, gemini_timeout_s=5)
    ask(other)
    assert isinstance(error_of(other), ExtractionBusy)  # the next turn comes in a minute, not in 5 s
    assert len(remote.requests) == 2


def test_a_turn_that_comes_in_time_is_waited_for(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.turns._MINUTE_MS", 800)
    turns = Turns(settings.model_copy(update={"gemini_calls_per_minute": 1}), store)
    begun = []
    for _ in range(3):
        with turns.take(patience_s=20):
            begun.append(time.monotonic())
    assert begun[1] - begun[0] > 0.7
    assert begun[2] - begun[1] > 0.7


def test_without_redis_nobody_calls(settings: Settings, remote: GeminiServer) -> None:
    alone = Settings(**settings.model_dump() | {"gemini_api_key": KEY, "redis_url": "redis://127.0.0.1:1/0"})
    store = Store.from_settings(alone)
    with pytest.raises(StoreUnavailable):
        ask(Gemini(alone, Turns(alone, store), "Extract the design."))
    store.close()
    assert remote.requests == []


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(server.problem(400, "INVALID_ARGUMENT", f"bad request with key {KEY}"), id="in a 400"),
        pytest.param(server.problem(429, "RESOURCE_EXHAUSTED", f"quota of {KEY}"), id="in a 429"),
        pytest.param(server.problem(500, "INTERNAL", f"oops {KEY}"), id="in a 500"),
        pytest.param(server.words(f"your key is {KEY}"), id="in an answer"),
        pytest.param(server.raw(f"<{KEY}>".encode()), id="in a broken answer"),
    ],
)
def test_the_key_is_in_no_error_and_no_log(
    make: Make, remote: GeminiServer, caplog: pytest.LogCaptureFixture, reply: server.Reply
) -> None:
    remote.will(reply)
    gemini = make(gemini_tries=2)
    with caplog.at_level(logging.DEBUG):
        error = error_of(gemini)
        logging.getLogger("test").exception("as a task would log it", exc_info=error)
    assert KEY not in caplog.text
    assert KEY not in repr(error) + str(error.to_record()) + repr(gemini) + repr(vars(gemini))
    assert len(caplog.text) > 100


def test_a_key_that_cannot_be_a_header_is_refused_without_being_shown() -> None:
    with pytest.raises(Exception, match="GEMINI_API_KEY") as caught:
        load_settings(gemini_api_key="AIza secret\n")
    assert "AIza secret" not in str(caught.value)


def test_the_real_call_of_the_makefile_runs_and_skips_without_a_key(remote: GeminiServer, tmp_path: Path) -> None:
    env = os.environ | {"GEMINI_BASE_URL": remote.url, "OUTPUTS_DIR": str(tmp_path)}
    for key, said in (("", "Skipped: GEMINI_API_KEY is not set"), (KEY, "answered after 1 call(s)")):
        done = subprocess.run(
            [sys.executable, "-m", "tests.real_gemini"],
            cwd=ROOT, env=env | {"GEMINI_API_KEY": key}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    assert len(remote.requests) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"gemini_photo.jpg", "gemini_design.png"}


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_nearest_aspect_is_found(aspect: str) -> None:
    across, down = (int(part) for part in aspect.split(":"))
    assert nearest_aspect(across * 101, down * 100) == aspect
