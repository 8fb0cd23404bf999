"""What the service shows to the network: names, headers, served files, and where secrets may be seen."""

import base64
import http.client
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from PIL import Image

from shared.errors import FatalError, OutputNotFound
from shared.jobs import Source, new_job
from shared.messages import make_celery
from shared.settings import load_settings
from shared.storage import FolderStorage
from tests.hostile.building import quarters, saved
from tests.hostile.stack import Stack
from tests.hostile.strangers import cases as strangers
from tests.processes import ROOT, ask_for_events, python, wait_for
from tests.redis_server import RedisServer, free_port

SECRET = "8d1f0c-signature-of-a-source"
JOB_ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def stack(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("surface")
    settings = load_settings(redis_url=redis_server.url, outputs_dir=folder / "outputs")
    settings.outputs_dir.mkdir()
    # At DEBUG, every library says what it says: that, too, must hold no secret.
    with Stack(settings, folder, LOG_LEVEL="DEBUG", ALLOW_PRIVATE_SOURCES="127.0.0.1") as stack:
        yield stack


# --- names of outputs ---------------------------------------------------------------------------------------------

GOOD_NAME = f"design_1_{JOB_ID}_front_rmbg.png"
CLIMBING = [
    *("../secret.txt", "..%2fsecret.txt", "%2e%2e%2fsecret.txt", "%2e%2e/secret.txt", "..%252fsecret.txt"),
    *("..%5csecret.txt", "..\\secret.txt", "....//secret.txt", "..;/secret.txt", "%c0%ae%c0%ae/secret.txt"),
    *("..%c0%afsecret.txt", "..%ef%bc%8fsecret.txt", "%uff0e%uff0e/secret.txt", "/etc/passwd", "//etc/passwd"),
    *("%2fetc%2fpasswd", "file:///etc/passwd", "./secret.txt", "secret.txt", ".", "..", "...", ".work", ".work/x/y"),
    *(f".work%2f{JOB_ID}%2ffront.upload", f".work/{JOB_ID}/front.upload", "inside.txt", "inside.txt%00.png"),
    *(GOOD_NAME + end for end in ("%00", "%00.txt", "%0a", "%20", "/", "/../inside.txt", "%2f..%2finside.txt")),
    *(f"%00{GOOD_NAME}", f"x/../{GOOD_NAME}%2e", f".{GOOD_NAME}.part"),
    *(f"design_1_{JOB_ID}_front_rmbg.html", f"design_1_{JOB_ID}_front_rmbg.svg"),
    *(f"design_../../x_{JOB_ID}_front_rmbg.png", f"design_1_{JOB_ID}_front_../rmbg.png", "design_1_.._front_rmbg.png"),
    *("x" * 255, "x" * 3000, f"design_{'1' * 64}_{JOB_ID}_front_rmbg.png" * 20, "%ff%fe", "%", "%zz", "~root", "$HOME"),
]  # fmt: skip


@pytest.mark.parametrize("name", CLIMBING)
def test_no_name_leads_out_of_the_outputs_folder(stack: Stack, name: str) -> None:
    """Sent as written: http.client does not tidy paths as requests and browsers do."""
    outputs = stack.settings.outputs_dir
    (outputs.parent / "secret.txt").write_text("hunter2")
    for path in (
        outputs / "inside.txt",
        outputs / ".work" / JOB_ID / "front.upload",
        outputs / f"design_1_{JOB_ID}_front_rmbg.html",
        outputs / f"design_1_{JOB_ID}_front_rmbg.svg",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("hunter2")
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=20)
    try:
        connection.putrequest("GET", f"/outputs/{name}", skip_accept_encoding=True)
        connection.endheaders()
        reply = connection.getresponse()
        body = reply.read()
    finally:
        connection.close()
    assert reply.status in (301, 308, 400, 404), (reply.status, body[:300])
    assert b"hunter2" not in body
    assert b"root:" not in body


@pytest.mark.parametrize("name", [*CLIMBING, "", "\0", "a\0b", "design_1_../x_front_rmbg.png"])
def test_storage_refuses_what_is_no_name_of_an_output(tmp_path: Path, name: str) -> None:
    storage = FolderStorage(tmp_path / "outputs", "http://x.test")
    with pytest.raises(OutputNotFound):
        storage.path(name)
    with pytest.raises(OutputNotFound):
        storage.open_output(name)
    with pytest.raises(OutputNotFound):
        storage.write_atomic(name, b"x")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", ".work/../x", ".work/a/../../x", ".work/a/b/c", ".work/a/.b",
                                  ".work//b", "work/a/b", ".work/a/b\0", ".work/a\n/b", "", ".work/a"])  # fmt: skip
def test_storage_reads_sources_from_a_jobs_folder_only(tmp_path: Path, path: str) -> None:
    with pytest.raises(OutputNotFound):
        FolderStorage(tmp_path, "http://x.test").source_path(path)


@pytest.mark.parametrize("job_id", ["..", ".", "", "a/b", "a\0", "a_b", "x" * 65, "/etc"])
def test_storage_makes_folders_for_job_ids_only(tmp_path: Path, job_id: str) -> None:
    storage = FolderStorage(tmp_path / "outputs", "http://x.test")
    for act in (storage.work_dir, storage.remove_work, lambda job_id: storage.write_work(job_id, "a", b"x")):
        with pytest.raises(ValueError, match="not a job id"):
            act(job_id)
    with pytest.raises(ValueError, match="not a name"):
        storage.write_work("a", f"../{job_id}", b"x")
    assert list(tmp_path.rglob("*")) == [] or list(tmp_path.rglob("*")) == [tmp_path / "outputs"]


# --- headers ------------------------------------------------------------------------------------------------------

PAGES = ("/", "/docs", "/static/app.js", "/static/style.css", "/static/docs.js")
OTHERS = ("/live", "/ready", "/health", "/metrics", "/openapi.json", "/jobs/none", "/nothing", f"/outputs/{GOOD_NAME}")


def policy_of(reply: requests.Response) -> dict[str, list[str]]:
    parts = reply.headers["Content-Security-Policy"].split(";")
    return {name: rest for name, *rest in (part.split() for part in parts)}


@pytest.mark.parametrize("path", [*PAGES, *OTHERS])
def test_every_answer_says_that_it_is_what_it_says(stack: Stack, path: str) -> None:
    reply = stack.get(path)
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    policy = policy_of(reply)
    assert policy["default-src"] == ["'none'"]
    assert policy["frame-ancestors"] == ["'none'"]
    assert "Set-Cookie" not in reply.headers
    assert "Access-Control-Allow-Origin" not in reply.headers
    words = {word for words in policy.values() for word in words}
    assert words <= {"'none'", "'self'", "blob:", "data:"}  # no inline code, no eval, no other site, no wildcard
    assert "data:" not in policy.get("script-src", [])
    assert "data:" not in policy.get("connect-src", [])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"])
def test_errors_have_the_same_headers(stack: Stack, method: str) -> None:
    reply = requests.request(method, f"{stack.url}/health", timeout=20)
    assert reply.status_code in (200, 405)
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert policy_of(reply)["default-src"] == ["'none'"]


def test_a_script_in_a_path_comes_back_as_text_only(stack: Stack) -> None:
    reply = stack.get("/<script>alert(1)</script>")
    assert (reply.status_code, reply.headers["Content-Type"]) == (404, "application/problem+json")
    # What gunicorn itself answers to a broken request is HTML, so it must be escaped.
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=20)
    try:
        connection.connect()
        connection.sock.sendall(b"<script>alert(1)</script> / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.sock.recv(65536)
    finally:
        connection.close()
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b"<script>" not in answer


def test_the_pages_code_writes_no_markup_of_strangers() -> None:
    for path in (ROOT / "api" / "static").glob("*.js"):
        text = path.read_text()
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text) == []


# --- what is served -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in strangers() if case.name.startswith("polyglot")], ids=lambda c: c.name
)
def test_a_polyglot_never_comes_back_as_its_other_self(stack: Stack, case: Any) -> None:
    files = {"front": ("page.html", case.data, "text/html"), "back": ("a.png", saved(quarters(), "PNG"), "image/png")}
    body = stack.post(data={"id": "poly", "options": '{"models": ["rmbg"], "proofs": true}'}, files=files).json()
    urls = [url for cell in body["cells"].values() for url in (cell["url"], *cell["files"].values()) if url]
    assert len(urls) >= 5
    for url in urls:
        reply = requests.get(url, timeout=20)
        assert reply.status_code == 200
        kind = Image.open(io.BytesIO(reply.content)).format
        assert reply.headers["Content-Type"] == {"PNG": "image/png", "WEBP": "image/webp"}[str(kind)]
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert policy_of(reply)["default-src"] == ["'none'"]
        for trace in (b"<script", b"<html", b"<?php", b"%PDF", b"PK\x03\x04", b"Evil.class", b"alert("):
            assert trace not in reply.content


def test_nothing_of_the_files_metadata_is_passed_on(stack: Stack) -> None:
    """Where a photo was taken, and with what, is not for the buyer of the print."""
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "Secret Camera", {1: "N", 2: (52.0, 30.0, 0.0)}
    data = saved(quarters(), "JPEG", exif=exif, comment=b"secret comment")
    body = stack.post(data={"id": "1"}, files={"front": ("a.jpg", data)}).json()
    for cell in body["cells"].values():
        content = requests.get(cell["url"], timeout=20).content
        kinds = {content[at + 4 : at + 8] for at in _chunks(content)}
        assert kinds <= {b"IHDR", b"sRGB", b"pHYs", b"IDAT", b"IEND"}


def _chunks(png: bytes) -> Iterator[int]:
    at = 8
    while at < len(png):
        yield at
        at += 12 + int.from_bytes(png[at : at + 4], "big")


# --- secrets ------------------------------------------------------------------------------------------------------


class _Pictures(BaseHTTPRequestHandler):
    """Serves a picture under /good and 404 elsewhere."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        body = saved(quarters(), "PNG") if self.path.startswith("/good") else b"no"
        self.send_response(200 if self.path.startswith("/good") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pictures() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


class Monitor:
    """Everything that any client says to Redis while it is open."""

    def __init__(self, port: int) -> None:
        self.commands: list[str] = []
        self._client = redis.Redis(port=port)
        self._monitor: Any = self._client.monitor()  # type: ignore[no-untyped-call]
        self._monitor.__enter__()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for command in self._monitor.listen():
            self.commands.append(command["command"])
            if "end-of-monitor" in command["command"]:
                return

    def close(self, port: int) -> None:
        with redis.Redis(port=port) as client:
            client.echo("end-of-monitor")
        self._thread.join(20)
        self._monitor.__exit__(None, None, None)
        self._client.close()


def test_a_signed_url_is_seen_by_its_server_and_nobody_else(
    stack: Stack, redis_server: RedisServer, pictures: ThreadingHTTPServer
) -> None:
    """Given sources with signatures in their queries, when the job has ended, then only the record knew them."""
    base = f"http://127.0.0.1:{pictures.server_port}"
    output = {"front": f"{base}/good.png?sig={SECRET}", "back": f"{base}/missing.png?sig={SECRET}"}
    flower = make_celery(load_settings(redis_url=redis_server.url), "flower")
    ask_for_events(flower, stack.worker)
    monitor = Monitor(redis_server.port)
    reply = stack.post(json={"id": 1, "output": output})
    record = stack.get(f"/jobs/{reply.json()['job_id']}")
    wait_for("the end of the job in the log", lambda: "job_done" in stack.worker.log, stack.worker)
    monitor.close(redis_server.port)

    assert [path.endswith(SECRET) for path in pictures.seen] == [True, True]  # type: ignore[attr-defined]
    assert reply.json()["status"] == "partial"
    assert reply.json()["cells"]["back_rmbg"]["error"]["code"] == "source_unreachable"
    for text in (reply.text, record.text, stack.logs):
        assert SECRET not in text
    # The worker needs the URL: it is in the job's record, and in no message, event or other key of Redis.
    # A script shows up twice, with its arguments and with the commands that it runs.
    told = [command.split() for command in monitor.commands if _holds(command, SECRET)]
    assert {words[0] for words in told} <= {"EVALSHA", "HSET"}
    assert {words[1] for words in told if words[0] == "HSET"} == {f"job:{reply.json()['job_id']}"}
    published = [command for command in monitor.commands if command.startswith("PUBLISH") and "celeryev" in command]
    assert published  # what Flower sees


def _holds(command: str, secret: str) -> bool:
    """Whether a secret is in a command, also in the base64 that message bodies come in."""
    encoded = [base64.b64encode(("x" * shift + secret).encode())[4:-4].decode() for shift in range(3)]
    return any(text in command for text in (secret, *encoded))


def test_what_tests_find_in_commands_they_would_find_in_message_bodies_too() -> None:
    for shift in range(3):
        body = base64.b64encode(b"y" * shift + json.dumps({"url": SECRET}).encode()).decode()
        assert _holds(f'LPUSH jobs {{"body": "{body}"}}', SECRET)
    assert not _holds("LPUSH jobs nothing", SECRET)


def test_no_repr_shows_a_secret() -> None:
    job = new_job(
        job_id=JOB_ID,
        client_id=1,
        sources={"front": Source(kind="url", url=f"http://x.test/a?sig={SECRET}")},
        models=("rmbg",),
    )
    assert SECRET not in f"{job!r} {job} {job.sources!r}"
    secrets = dict.fromkeys(("hf_token", "redis_password", "flower_password", "gemini_api_key"), "hunter2")
    settings = load_settings(**secrets, redis_url="redis://:hunter2@redis.test:6379/0")
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()}"


@pytest.mark.parametrize("module", ["worker", "api"])
def test_the_password_of_redis_is_in_no_log(tmp_path: Path, module: str) -> None:
    """Given a Redis with a password, when it is there and when it goes away, then nobody logs the password."""
    arguments: tuple[str, ...] = ("-m", "tests.tiny_worker")
    if module == "api":
        arguments = ("-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.app:create_app()")
    with RedisServer() as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", "hunter2")
        api_port = free_port()
        env = {"REDIS_URL": f"redis://:hunter2@127.0.0.1:{server.port}/0", "OUTPUTS_DIR": str(tmp_path / "outputs"),
               "API_PORT": str(api_port), "LOG_LEVEL": "DEBUG"}  # fmt: skip
        with python(module, *arguments, env=env, log_dir=tmp_path) as process:
            if module == "api":
                url = f"http://127.0.0.1:{api_port}"
                wait_for("the API", lambda: _status_of_a_job(url) == 202, process)
                server.stop()
                wait_for("an answer without Redis", lambda: _status_of_a_job(url) == 503, process)
            else:
                wait_for("the worker", lambda: "mingle" in process.log or "ready." in process.log, process)
                server.stop()
                wait_for("its complaint", lambda: "heartbeat_failed" in process.log, process)
            assert "hunter2" not in process.log


def _status_of_a_job(url: str) -> int:
    body = {"id": 1, "output": {"front": "http://x.test/a"}}
    try:
        reply = requests.post(f"{url}/process?wait=false", json=body, timeout=20)
    except requests.ConnectionError:
        return 0
    assert "hunter2" not in reply.text
    return reply.status_code


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@x.test/a", "http://[hunter2", "http://x:hunter2/", "http://hunter2\u2100@x.test/"]
)
def test_a_url_that_is_refused_is_not_repeated(stack: Stack, url: str) -> None:
    reply = stack.post(json={"id": 1, "output": {"front": url}})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert "hunter2" not in reply.text
    assert "hunter2" not in stack.logs


@pytest.mark.parametrize(("name", "value"), [("redis_url", "hunter2://x"), ("hf_token", ["hunter2"])])
def test_errors_about_secret_settings_do_not_show_them(name: str, value: object) -> None:
    with pytest.raises(FatalError) as caught:
        load_settings(**{name: value})
    assert name.upper() in str(caught.value)
    assert "hunter2" not in str(caught.value)
