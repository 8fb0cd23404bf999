"""A secret of its own in every setting and URL: after jobs that end well and badly, nobody else has seen one."""

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from api.keys import new_key
from shared.jobs import FINAL
from shared.messages import make_celery
from shared.settings import Settings, load_settings
from tests import gemini_server
from tests.gemini_server import GeminiServer
from tests.hostile.building import quarters, saved
from tests.hostile.stack import Stack
from tests.processes import wait_for
from tests.receiver import SECRET as WEBHOOK_SECRET
from tests.receiver import Receiver
from tests.redis_server import RedisServer

#: No other string of the stack's has this beginning.
KEY, KEY_ENTRY = new_key("shop")
CANARIES = {
    "HF_TOKEN": f"hf_canary{secrets.token_hex(12)}",
    "GEMINI_API_KEY": f"AIzaCanary{secrets.token_hex(14)}",
    "OUTPUT_URL_SECRET": f"canary-output-{secrets.token_hex(16)}",
    "WEBHOOK_SECRET": WEBHOOK_SECRET,
    "REDIS_PASSWORD": f"canary-redis-{secrets.token_hex(8)}",
    "FLOWER_PASSWORD": f"canary-flower-{secrets.token_hex(8)}",
}
#: Secrets that clients bring along: their key, and what is in their URLs beside the place.
SOURCE_CANARY, HOOK_CANARY, PATH_CANARY = (
    f"canary-{what}-{secrets.token_hex(8)}" for what in ("source", "hook", "path")
)


class Seen:
    """Everything that somebody who may not know the secrets can read, by where it was."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, place: str, text: str) -> None:
        self.texts[place] = self.texts.get(place, "") + text

    def holding(self, secret: str) -> list[str]:
        return sorted(place for place, text in self.texts.items() if secret in text)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("canaries")
    password = CANARIES["REDIS_PASSWORD"]
    with RedisServer() as server, GeminiServer() as gemini, Receiver() as receiver:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", password)
        url = f"redis://:{password}@127.0.0.1:{server.port}/0"
        settings = load_settings(redis_url=url, outputs_dir=folder / "outputs")
        own = {**CANARIES, "API_KEYS": KEY_ENTRY, "GEMINI_BASE_URL": gemini.url, "GEMINI_TRIES": "1"}
        own |= {"OUTPUT_URL_TTL": "600", "ALLOW_PRIVATE_SOURCES": "127.0.0.1", "LOG_LEVEL": "DEBUG"}
        own["EXTRACT_ON_ERROR"] = "fail"
        with Stack(settings, folder, **own) as stack:
            found = Seen()
            _run_jobs(stack, gemini, receiver, found)
            found.add("the API's log", stack.api.log)
            found.add("the worker's log", stack.worker.log)
            _ask_worker(settings, found)
            _read_redis(settings, found)
            _read_outputs(settings.outputs_dir, found)
            yield found


def _run_jobs(stack: Stack, gemini: GeminiServer, receiver: Receiver, seen: Seen) -> None:
    """Jobs of every ending, and every page of the API as their owner and as a stranger gets it."""
    mine = {"Authorization": f"Bearer {KEY}"}
    gone = f"http://127.0.0.1:1/missing.png?sig={SOURCE_CANARY}"
    hook = {"webhook": {"url": receiver.url(f"/{PATH_CANARY}?token={HOOK_CANARY}")}}
    dead = {"webhook": {"url": f"http://127.0.0.1:1/{PATH_CANARY}?token={HOOK_CANARY}"}}
    key = CANARIES["GEMINI_API_KEY"]
    replies = {
        "refused": gemini_server.problem(400, "INVALID_ARGUMENT", f"the key {key} may not"),
        "wrong key": gemini_server.problem(403, "PERMISSION_DENIED", f"API key {key} is wrong"),
        "words": gemini_server.words(f"I cannot. Your key is {key}"),
        "garbage": gemini_server.raw(f"<html>{key}</html>".encode()),
        "a picture": gemini_server.picture(),
    }
    job_ids = []
    for number, reply in enumerate(replies.values()):
        gemini.will(reply)
        sides = {"front": ("a.png", saved(quarters(40 + number, 30), "PNG"))}
        options = '{"extract": "always"}'
        answer = stack.post(data={"id": "g", "options": options}, files=sides, headers=mine)
        job_ids.append(answer.json()["job_id"])
    for webhook in (hook, dead):
        body = {"id": 7, "output": {"front": gone, "back": gone}, "options": webhook}
        job_ids.append(stack.post(json=body, headers=mine).json()["job_id"])
    wait_for("the ends", lambda: all(stack.store.status(job_id) in FINAL for job_id in job_ids), stack.worker)
    wait_for("the webhooks", lambda: stack.worker.log.count("webhook_tried") >= 2, stack.worker)
    paths = ["/", "/docs", "/openapi.json", "/health", "/ready", "/metrics", "/jobs", "/nothing"]
    paths += [f"/jobs/{job_id}{end}" for job_id in job_ids for end in ("", "/events")]
    for path in paths:
        for who, headers in {
            "its owner": mine,
            "a stranger": {},
            "a thief": {"Authorization": "Bearer cutout_x"},
        }.items():
            page = stack.get(path, headers=headers)
            seen.add(f"{path.split('/')[1] or 'page'} for {who}", f"{page.headers}{page.text}")
    for told in receiver.received:
        seen.add("a webhook", f"{told.headers}{told.body!r}")


def _ask_worker(settings: Settings, seen: Seen) -> None:
    """What Flower asks a worker for, and shows."""
    inspect = make_celery(settings, "flower").control.inspect(timeout=20, limit=1)
    for question in ("conf", "stats", "registered", "active", "reserved", "scheduled", "active_queues", "report"):
        seen.add(f"inspect {question}", json.dumps(getattr(inspect, question)(), default=str))


def _read_redis(settings: Settings, seen: Seen) -> None:
    """Every key and value, whatever its type; DUMP would hide them behind its compression."""
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
        readers: dict[str, Any] = {
            "string": client.get,
            "hash": client.hgetall,
            "list": lambda key: client.lrange(key, 0, -1),
            "set": client.smembers,
            "zset": lambda key: client.zrange(key, 0, -1),
            "stream": client.xrange,
        }
        for key in client.scan_iter(count=1000):
            kind = client.type(key).decode()
            place = re.sub(r"[0-9a-f]{32}", "<id>", key.decode("utf-8", "replace"))
            seen.add(f"redis {place}", f"{key!r}{readers[kind](key)!r}")


def _read_outputs(folder: Path, seen: Seen) -> None:
    for path in folder.rglob("*"):
        seen.add("the outputs folder", str(path) + (path.read_bytes().decode("latin-1") if path.is_file() else ""))


@pytest.mark.parametrize("name", CANARIES)
def test_no_secret_of_the_settings_is_seen(seen: Seen, name: str) -> None:
    assert len(seen.texts) > 20
    secret = CANARIES[name]
    assert seen.holding(secret) == []
    assert seen.holding(secret.removeprefix("whsec_")) == []


def test_a_callers_key_is_seen_nowhere(seen: Seen) -> None:
    assert seen.holding(KEY) == []
    assert seen.holding(KEY_ENTRY.partition(":")[2]) == []


@pytest.mark.parametrize("secret", [SOURCE_CANARY, HOOK_CANARY], ids=["source", "hook"])
def test_what_is_in_a_clients_urls_is_in_the_jobs_record_alone(seen: Seen, secret: str) -> None:
    assert seen.holding(secret) == ["redis job:<id>"]  # the worker needs it


def test_the_path_of_a_webhook_is_shown_to_its_owner_alone(seen: Seen) -> None:
    assert seen.holding(PATH_CANARY) == ["jobs for its owner", "redis job:<id>"]


def test_the_search_would_find_what_is_there(seen: Seen) -> None:
    for place in ("the API's log", "the worker's log", "redis job:<id>", "jobs for its owner", "a webhook"):
        assert place in seen.holding(""), place
    assert '"max-concurrency"' in seen.texts["inspect stats"]
    assert "webhook_tried" in seen.texts["the worker's log"]
    assert "extraction_unauthorized" in seen.texts["jobs for its owner"]
