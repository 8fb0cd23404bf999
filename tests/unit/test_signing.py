"""Signed output URLs: made when a reply is shaped, good for a while, for one file, by our key."""

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api.app import create_app
from shared.errors import FatalError
from shared.jobs import CellRecord, CellStatus, Job, JobStatus
from shared.settings import Settings, load_settings
from shared.signing import OutputUrls
from shared.storage import job_of, output_name
from shared.store import Store
from tests.conftest import PlayedWorker
from tests.receiver import SECRET as WEBHOOK_SECRET

SECRET = "0123456789abcdef" * 4
BODY = {"id": 7, "output": {"front": "https://example.com/front.png"}}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return load_settings(**{**settings.model_dump(), "output_url_ttl": 600, "output_url_secret": SECRET})


@pytest.fixture
def client(settings: Settings) -> Iterator[FlaskClient]:
    app: Flask = create_app(settings)
    yield app.test_client()
    app.extensions["service"].store.close()
    app.extensions["service"].celery.close()


@pytest.fixture
def delivered(client: FlaskClient, settings: Settings, played_worker: PlayedWorker) -> dict[str, Any]:
    """The reply of a finished job whose files are there."""
    reply = client.post("/process", json=BODY).get_json()
    settings.outputs_dir.mkdir(parents=True, exist_ok=True)
    for name in ("front_rmbg", "front_birefnet"):
        (settings.outputs_dir / urlsplit(reply[name]).path.rpartition("/")[2]).write_bytes(b"PNG of " + name.encode())
    body: dict[str, Any] = reply
    return body


def path_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def test_a_signed_url_gives_its_file_and_says_how_long(client: FlaskClient, delivered: dict[str, Any]) -> None:
    reply = client.get(path_of(delivered["front_rmbg"]), buffered=True)
    assert (reply.status_code, reply.data) == (200, b"PNG of front_rmbg")
    kind, age, _ = reply.headers["Cache-Control"].split(", ")
    assert kind == "private"
    assert 590 <= int(age.removeprefix("max-age=")) <= 600


def test_every_url_of_every_reply_is_signed(
    client: FlaskClient, delivered: dict[str, Any], store: Store, settings: Settings
) -> None:
    envelope = client.get(f"/jobs/{delivered['job_id']}")
    for text in (envelope.text, client.post("/process", json=BODY).text):
        assert text.count("/outputs/design_") == text.count("?expires=") > 3
    assert "expires=" not in store.get(delivered["job_id"]).model_dump_json()  # never stored
    assert (envelope.json or {})["links"]["self"] == f"http://service.test/jobs/{delivered['job_id']}"
    name = output_name(7, "j1", "front", "rmbg")
    value = {"a": [f"{settings.base_url}/outputs/{name}", 1, None, f"https://elsewhere.test/outputs/{name}"]}
    signed = OutputUrls(settings).sign(value, "j1")["a"]
    assert "expires=" in signed[0]
    assert signed[1:] == value["a"][1:]


def test_a_listing_signs_the_urls_of_each_job(client: FlaskClient, delivered: dict[str, Any]) -> None:
    (entry,) = client.get("/jobs").get_json()["jobs"]
    assert entry["job_id"] == delivered["job_id"]
    for url in entry["links"]["outputs"].values():
        assert client.get(path_of(url), buffered=True).status_code == 200


@pytest.mark.parametrize("client_id", ["other", "own"])
def test_a_webhook_to_an_output_does_not_get_that_output_signed(
    settings: Settings, delivered: dict[str, Any], client_id: str
) -> None:
    """A reply repeats the webhook's address; with somebody's unsigned or ended URL there, it must not sign it."""
    app = create_app(load_settings(**{**settings.model_dump(), "webhook_secret": WEBHOOK_SECRET}))
    unsigned = delivered["front_rmbg"].partition("?")[0]
    # An id may be chosen so that the new job's names begin like those of the other.
    body = {**BODY, "options": {"webhook": {"url": unsigned}}}
    if client_id == "own":
        body["id"] = f"7_{delivered['job_id']}_front"
    reply = app.test_client().post("/process?wait=false", json=body)
    assert (reply.status_code, (reply.json or {})["webhook"]["url"]) == (202, unsigned)
    app.extensions["service"].store.close()
    app.extensions["service"].celery.close()


def test_an_id_that_looks_like_another_jobs_name_stands_for_its_own_job() -> None:
    assert job_of(output_name("7_aa_front", "bb", "back", "rmbg_print")) == "bb"
    assert job_of("design_7_aa_front.png") is None


def test_the_problem_of_a_failed_job_signs_the_cells_that_are_there(
    client: FlaskClient, played_worker: PlayedWorker, settings: Settings
) -> None:
    def fail_after_a_cell(store: Store, job: Job) -> None:
        url = f"{settings.base_url}/outputs/{output_name(7, job.job_id, 'front', 'rmbg')}"
        store.record_cell(job.job_id, "front_rmbg", CellRecord(status=CellStatus.SUCCEEDED, url=url))
        store.finish(job.job_id, JobStatus.FAILED, error={"code": "internal_error", "detail": "x"})

    played_worker.outcome = fail_after_a_cell
    problem = client.post("/process", json=BODY)
    assert problem.status_code == 500
    assert "expires=" in (problem.json or {})["cells"]["front_rmbg"]["url"]


def test_a_later_get_gives_a_fresh_url_of_the_same_file(
    client: FlaskClient, delivered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.time() + 599
    monkeypatch.setattr("shared.signing.time.time", lambda: later)
    old = path_of(delivered["front_rmbg"])
    fresh = path_of(client.get(f"/jobs/{delivered['job_id']}").get_json()["cells"]["front_rmbg"]["url"])
    assert client.get(old, buffered=True).status_code == 200
    later += 2
    ended = client.get(old)
    assert (ended.status_code, (ended.json or {})["code"]) == (410, "output_url_expired")
    assert client.get(fresh, buffered=True).data == b"PNG of front_rmbg"


def test_nothing_but_our_signature_for_this_file_and_time_opens_it(
    client: FlaskClient, delivered: dict[str, Any], settings: Settings
) -> None:
    parts = urlsplit(delivered["front_rmbg"])
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    other = urlsplit(delivered["front_birefnet"]).path
    foreign = OutputUrls(load_settings(**{**settings.model_dump(), "output_url_secret": "f" * 64}))
    for path in (
        parts.path,
        f"{parts.path}?{urlencode({**query, 'expires': int(query['expires']) + 1})}",
        f"{parts.path}?{urlencode({**query, 'signature': query['signature'][:-2]})}",
        f"{parts.path}?{urlencode({**query, 'signature': 'é'})}",
        f"{parts.path}?expires={query['expires']}",
        f"{parts.path}?signature={query['signature']}",
        f"{other}?{parts.query}",
        path_of(foreign.sign(f"{settings.base_url}{parts.path}", delivered["job_id"])),
    ):
        reply = client.get(path)
        assert (reply.status_code, (reply.json or {})["code"]) == (403, "output_url_invalid"), path


def test_unsigned_is_the_default(settings: Settings) -> None:
    urls = OutputUrls(load_settings(**{**settings.model_dump(), "output_url_ttl": 0}))
    url = f"http://service.test/outputs/{output_name(7, 'j1', 'front', 'rmbg')}"
    assert urls.sign(url, "j1") == url
    assert urls.check("x.png", {}) is None


@pytest.mark.parametrize(
    ("ttl", "secret", "words"),
    [(60, "", "OUTPUT_URL_TTL needs it"), (0, "short", "too short"), (-1, "", "OUTPUT_URL_TTL")],
)
def test_a_lifetime_without_a_good_secret_stops_the_start(ttl: int, secret: str, words: str) -> None:
    with pytest.raises(FatalError, match=words) as caught:
        load_settings(output_url_ttl=ttl, output_url_secret=secret)
    assert "got 'short'" not in str(caught.value)
