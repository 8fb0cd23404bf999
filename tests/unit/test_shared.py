"""Storage, messages, logs and job names."""

import errno
import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import structlog

from shared.errors import OutputNotFound, OutputNotWritten, StoreUnavailable
from shared.jobs import FINAL, TRANSITIONS, JobStatus, cell_names, new_job_id
from shared.logs import bind_context, configure_logging
from shared.messages import PLAN, QUEUE, make_celery, send_plan
from shared.settings import Settings, load_settings
from shared.storage import FolderStorage
from tests.redis_server import RedisServer, free_port

JOB_ID = "0123456789abcdef0123456789abcdef"
NAME = f"design_123_{JOB_ID}_front_rmbg.png"


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "outputs", "http://service.test/")


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_cells_are_named_side_by_side_in_a_fixed_order() -> None:
    assert cell_names(("back", "front"), ("rmbg", "birefnet")) == [
        "front_rmbg",
        "front_birefnet",
        "back_rmbg",
        "back_birefnet",
    ]
    assert cell_names(("back",), ("birefnet",)) == ["back_birefnet"]


def test_every_state_has_its_transitions_and_final_states_have_none() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert all(bool(TRANSITIONS[status]) is (status not in FINAL) for status in JobStatus)


# --- storage ------------------------------------------------------------------------------------------------------


def test_an_output_is_written_whole_and_read_back(storage: FolderStorage) -> None:
    name = storage.output_name(123, JOB_ID, "front", "rmbg")
    assert name == NAME
    assert storage.write_atomic(name, iter([b"ab", b"", b"cd"])) == 4
    with storage.open_output(name) as file:
        assert file.read() == b"abcd"
    assert storage.url(name) == f"http://service.test/outputs/{NAME}"
    assert [path.name for path in storage.outputs_dir.iterdir()] == [NAME]


def test_a_second_run_replaces_the_first_and_readers_see_one_whole_file(storage: FolderStorage) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: storage.write_atomic(NAME, data), contents))
    assert storage.path(NAME).read_bytes() in contents
    assert len(list(storage.outputs_dir.iterdir())) == 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../secret", "/etc/passwd", "design_1_../x_front_rmbg.png", "a.png", f"{NAME}\n", f"{NAME}/..",
     f"x/{NAME}", f".work/{JOB_ID}/front.upload", NAME.replace("front", "left"), f"{NAME}\0", NAME.upper()],
)  # fmt: skip
def test_no_name_leads_out_of_the_outputs_folder(storage: FolderStorage, name: str) -> None:
    for use in (storage.path, storage.open_output, lambda bad: storage.write_atomic(bad, b"x")):
        with pytest.raises(OutputNotFound):
            use(name)
    for bad in ("", "../x", "a/b", "a..b", ".hidden"):
        with pytest.raises(ValueError, match="not a"):
            storage.write_work(JOB_ID, bad, b"x")
        with pytest.raises(ValueError, match="not a job id"):
            storage.work_dir(bad)
    for relative in ("front.upload", f".work/{JOB_ID}/../../x", f".work/{JOB_ID}", "/etc/passwd", ".work/../x"):
        with pytest.raises(OutputNotFound):
            storage.source_path(relative)


def test_a_missing_output_is_not_found(storage: FolderStorage) -> None:
    with pytest.raises(OutputNotFound, match="design_123"):
        storage.open_output(NAME)


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_a_failed_write_says_why_and_leaves_nothing(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    storage.write_atomic(NAME, b"first")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputNotWritten, match=reason):
        storage.write_atomic(NAME, b"second")
    assert storage.path(NAME).read_bytes() == b"first"
    assert len(list(storage.outputs_dir.iterdir())) == 1


def test_an_error_of_the_data_itself_leaves_nothing(storage: FolderStorage) -> None:
    def broken() -> Iterator[bytes]:
        yield b"start"
        raise RuntimeError("upload ended early")

    with pytest.raises(RuntimeError, match="upload ended early"):
        storage.write_work(JOB_ID, "front.upload", broken())
    assert list(storage.work_dir(JOB_ID).iterdir()) == []


def test_a_jobs_work_folder_holds_its_uploads_until_it_is_removed(storage: FolderStorage) -> None:
    relative = storage.write_work(JOB_ID, "front.upload", b"picture")
    assert relative == f".work/{JOB_ID}/front.upload"
    assert storage.source_path(relative).read_bytes() == b"picture"
    storage.remove_work(JOB_ID)
    storage.remove_work(JOB_ID)
    assert not storage.source_path(relative).exists()


# --- messages -----------------------------------------------------------------------------------------------------


def test_a_plan_is_one_json_message_with_ids_only_and_leaves_nothing_else(
    settings: Settings, redis_server: RedisServer
) -> None:
    app = make_celery(settings, "test")
    send_plan(app, JOB_ID, "req-1")
    with redis.Redis(port=redis_server.port) as client:
        assert client.llen(QUEUE) == 1
        message = json.loads(client.lrange(QUEUE, 0, -1)[0])
        names = {key.decode() for key in client.scan_iter()}
        assert all(name == QUEUE or name.startswith("_kombu.binding") for name in names)
        assert client.pubsub_channels() == []
    assert message["headers"]["task"] == PLAN
    assert message["headers"]["id"] == JOB_ID
    assert message["content-type"] == "application/json"
    app.close()


def test_twenty_threads_can_queue_jobs_at_once(settings: Settings, redis_server: RedisServer) -> None:
    app, barrier = make_celery(settings, "test"), threading.Barrier(20)

    def send(_: int) -> None:
        barrier.wait(20)
        send_plan(app, new_job_id(), "req")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(send, range(20), timeout=60))
    with redis.Redis(port=redis_server.port) as client:
        assert client.llen(QUEUE) == 20
    app.close()


def test_a_job_that_redis_does_not_take_is_a_named_error() -> None:
    app = make_celery(load_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"), "test")
    with pytest.raises(StoreUnavailable, match="REDIS_URL"):
        send_plan(app, JOB_ID, "req")
    app.close()


# --- logs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Puts the test run's own logging back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_secret_of_the_settings_is_masked_in_any_line(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    secrets = {"gemini_api_key": "AIza-secret-key-123", "redis_url": "redis://:hidden-word@127.0.0.1:6379/0"}
    configure_logging(load_settings(**secrets, log_format=log_format))
    try:
        raise RuntimeError(f"a library says {secrets['gemini_api_key']}")
    except RuntimeError:
        structlog.get_logger("ours").exception("failed", url=secrets["redis_url"])
    logging.getLogger("theirs").warning("key=%s", secrets["gemini_api_key"])
    lines = capsys.readouterr().err
    assert "a library says ***" in lines
    assert "key=***" in lines
    assert not any(secret in lines for secret in secrets.values())


@pytest.mark.usefixtures("own_logging")
def test_every_log_event_is_one_json_line_with_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(load_settings())
    configure_logging(load_settings())
    with bind_context(request_id="req-1", job_id=JOB_ID):
        structlog.get_logger("ours").info("cell_done", cell="front_rmbg", seconds=0.5)
        logging.getLogger("celery.worker").warning("theirs %s", "said", extra={"size": 3})
        try:
            raise ValueError("bad\npicture")
        except ValueError:
            structlog.get_logger("ours").exception("cell_failed")
    logging.getLogger("gunicorn.error").info("outside")
    logging.getLogger("ours").debug("too quiet")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["cell_done", "theirs said", "cell_failed", "outside"]
    assert [(event.get("request_id"), event.get("job_id")) for event in events] == 3 * [("req-1", JOB_ID)] + [
        (None, None)
    ]
    assert list(events[0])[:3] == ["timestamp", "level", "event"]
    assert (events[0]["logger"], events[0]["level"], events[0]["seconds"]) == ("ours", "info", 0.5)
    assert (events[1]["logger"], events[1]["size"]) == ("celery.worker", 3)
    assert "ValueError: bad" in events[2]["exception"]


@pytest.mark.usefixtures("own_logging")
def test_text_logs_are_for_reading(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(load_settings(log_format="text"))
    structlog.get_logger("ours").info("cell_done", cell="front_rmbg")
    line = capsys.readouterr().err
    assert "cell_done" in line
    assert "cell=front_rmbg" in line
    assert not line.startswith("{")


def test_scratch_files_make_their_folder_and_say_why_they_cannot_be_written(storage: FolderStorage) -> None:
    storage.write_scratch(JOB_ID, "front_rmbg-alpha.npy", b"first")
    storage.write_scratch(JOB_ID, "front_rmbg-alpha.npy", b"second")
    assert (storage.work_path(JOB_ID) / "front_rmbg-alpha.npy").read_bytes() == b"second"
    with pytest.raises(ValueError, match="not a name"):
        storage.write_scratch(JOB_ID, "../out", b"")
    storage.remove_work(JOB_ID)
    storage.work_path(JOB_ID).write_bytes(b"a file where the folder should be")
    with pytest.raises(OutputNotWritten):
        storage.write_scratch(JOB_ID, "front_rmbg-alpha.npy", b"third")
