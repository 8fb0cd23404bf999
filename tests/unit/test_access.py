"""API keys: who gets in, what a key sees, and what is said to those without one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient

from api.access import find_caller, hash_key
from api.app import create_app
from api.keys import new_key
from shared.errors import FatalError
from shared.jobs import JobStatus
from shared.settings import Settings, load_settings
from shared.store import Store
from tests.conftest import PlayedWorker, eventually

ROOT = Path(__file__).parents[2]
BODY = {"id": 123, "output": {"front": "https://example.com/front.png"}}
SHOP, SHOP_ENTRY = new_key("shop")
PRESS, PRESS_ENTRY = new_key("press")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return load_settings(**{**settings.model_dump(), "api_keys": f"{SHOP_ENTRY},{PRESS_ENTRY}"})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def accepted(client: FlaskClient, key: str) -> str:
    reply = client.post("/process?wait=false", json=BODY, headers=bearer(key))
    assert reply.status_code == 202
    return str((reply.json or {})["job_id"])


# --- who gets in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("cutout_wrong"), bearer(""), bearer(SHOP[:-1]), bearer(SHOP + "x"), {"X-API-Key": "shop"},
     {"X-API-Key": hash_key(SHOP)}, {"Authorization": f"Basic {SHOP}"}, {"X-API-Key": "é"}],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), [("POST", "/process"), ("GET", f"/jobs/{'0' * 32}"), ("GET", "/metrics")])
def test_without_a_good_key_there_is_no_way_in(
    client: FlaskClient, method: str, path: str, headers: dict[str, str]
) -> None:
    reply = client.open(path, method=method, headers=headers, json=BODY if method == "POST" else None)
    assert (reply.status_code, (reply.json or {})["code"]) == (401, "unauthorized")
    assert reply.headers["WWW-Authenticate"] == 'Bearer realm="cutout"'
    assert reply.content_type == "application/problem+json"


@pytest.mark.parametrize("headers", [bearer(SHOP), {"X-API-Key": SHOP}, {"Authorization": f"bearer  {SHOP} "}])
def test_a_key_opens_by_either_header(client: FlaskClient, headers: dict[str, str]) -> None:
    assert client.post("/process?wait=false", json=BODY, headers=headers).status_code == 202


def test_every_route_needs_a_key_but_the_listed_ones(app: Flask) -> None:
    """A route that somebody adds is closed until it is named here."""
    client, opened = app.test_client(), set()
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<", "").replace(">", "")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            if client.open(path, method=method, buffered=True).status_code != 401:
                opened.add(rule.rule)
    assert opened == {"/", "/docs", "/openapi.json", "/static/<name>", "/outputs/<name>", "/health", "/live", "/ready"}


def test_every_key_is_compared_and_only_by_its_hash() -> None:
    hashes = {"shop": hash_key(SHOP), "press": hash_key(PRESS)}
    assert [find_caller(key, hashes) for key in (SHOP, PRESS, "x")] == ["shop", "press", None]
    assert find_caller(hash_key(SHOP), hashes) is None


# --- what a key sees --------------------------------------------------------------------------------------------------


def test_a_job_is_seen_by_the_key_that_made_it_and_by_no_other(client: FlaskClient, store: Store) -> None:
    job_id = accepted(client, SHOP)
    assert store.get(job_id).caller == "shop"
    assert client.get(f"/jobs/{job_id}", headers=bearer(SHOP)).status_code == 200
    others = client.get(f"/jobs/{job_id}", headers=bearer(PRESS))
    never_was = client.get(f"/jobs/{'f' * 32}", headers=bearer(PRESS))
    assert (others.status_code, never_was.status_code) == (404, 404)
    assert (others.json or {})["detail"].replace(job_id, "") == (never_was.json or {})["detail"].replace("f" * 32, "")


def test_a_job_made_while_the_api_was_open_belongs_to_no_key(client: FlaskClient, settings: Settings) -> None:
    open_app = create_app(load_settings(**{**settings.model_dump(), "api_keys": ""}))
    job_id = open_app.test_client().post("/process?wait=false", json=BODY).get_json()["job_id"]
    assert open_app.test_client().get(f"/jobs/{job_id}").status_code == 200
    assert client.get(f"/jobs/{job_id}", headers=bearer(SHOP)).status_code == 404
    shops = accepted(client, SHOP)
    assert open_app.test_client().get(f"/jobs/{shops}").status_code == 200  # keys taken away again: all is open
    open_app.extensions["service"].store.close()
    open_app.extensions["service"].celery.close()


def test_the_key_itself_is_nowhere(app: Flask, settings: Settings, store: Store, played_worker: PlayedWorker) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        client = app.test_client()
        reply = client.post("/process", json=BODY, headers=bearer(SHOP))
        client.get(f"/jobs/{'0' * 32}", headers={"X-API-Key": SHOP + "typo"})
    eventually(lambda: store.get((reply.json or {})["job_id"]).status == JobStatus.SUCCEEDED)
    record = store.get((reply.json or {})["job_id"])
    everything = json.dumps(lines, default=str) + record.model_dump_json() + repr(settings) + reply.text
    assert SHOP not in everything
    assert hash_key(SHOP) not in everything
    assert {line.get("caller") for line in lines if line["event"] == "request_done"} == {"shop", None}
    assert played_worker.taken[0].caller == "shop"


def test_health_without_a_key_says_what_works_and_no_more(client: FlaskClient, store: Store) -> None:
    models = {
        "rmbg": {"status": "ready", "device": "cuda:0"},
        "birefnet": {"status": "failed", "error": "/srv/x: gone"},
    }
    store.publish_worker("gpu-7", {"status": "failed", "models": models})
    bare, full = client.get("/health"), client.get("/health", headers=bearer(SHOP))
    assert bare.status_code == full.status_code == 503
    assert (bare.json or {})["models"]["birefnet"]["status"] == "failed"
    for secret in ("gpu-7", "cuda:0", "/srv/x"):
        assert secret not in bare.text
        assert secret in full.text


def test_metrics_are_for_keys(client: FlaskClient) -> None:
    assert "cutout_http_requests" in client.get("/metrics", headers=bearer(SHOP)).text


# --- settings and the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [SHOP, f"shop:{SHOP}", "shop", "shop:abc", f"a b:{'0' * 64}", f"{SHOP_ENTRY},{SHOP_ENTRY}", "shop:" + "G" * 64],
    ids=["a key", "a named key", "a name", "a short hash", "a name with a space", "a name twice", "no hash"],
)  # fmt: skip
def test_wrong_api_keys_stop_the_start_without_being_shown(value: str) -> None:
    with pytest.raises(FatalError) as caught:
        load_settings(api_keys=value)
    assert "API_KEYS" in str(caught.value)
    assert value not in str(caught.value)


def test_the_command_makes_a_key_that_the_setting_takes() -> None:
    command = [sys.executable, "-m", "api.keys", "new", "shop-2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    words = done.stdout.split()
    key = next(word for word in words if word.startswith("cutout_"))
    entry = next(word for word in words if word.startswith("API_KEYS=")).removeprefix("API_KEYS=")
    assert load_settings(api_keys=entry).key_hashes == {"shop-2": hash_key(key)}
    assert len(key) == len("cutout_") + 43
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert again.stdout != done.stdout
    wrong = subprocess.run([*command[:-1], "a:b"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, "is not a name" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("base_url", "keys", "is_warned"),
    [("http://192.168.10.74:8001", "", True), ("https://cutouts.example.com", "", True),
     ("https://cutouts.example.com", SHOP_ENTRY, False), ("http://127.0.0.1:8001", "", False),
     ("http://[::1]:8001", "", False), ("http://localhost:8001", "", False)],
    ids=["address", "name", "name and keys", "loopback", "loopback, IPv6", "localhost"],
)  # fmt: skip
def test_an_open_api_that_others_can_reach_warns_at_its_start(
    settings: Settings, base_url: str, keys: str, is_warned: bool
) -> None:
    with structlog.testing.capture_logs() as lines:
        app = create_app(load_settings(**{**settings.model_dump(), "base_url": base_url, "api_keys": keys}))
    assert any(line["event"] == "api_is_open" for line in lines) is is_warned
    app.extensions["service"].store.close()


def test_an_open_api_asks_nobody(settings: Settings) -> None:
    app = create_app(load_settings(**{**settings.model_dump(), "api_keys": ""}))
    headers: dict[str, Any] = bearer("left over from elsewhere")
    assert app.test_client().post("/process?wait=false", json=BODY, headers=headers).status_code == 202
    assert app.test_client().get("/metrics").status_code == 200
    app.extensions["service"].store.close()
    app.extensions["service"].celery.close()
