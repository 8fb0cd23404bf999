"""Rate limits: counted per key or address, told in headers, and no reason to stop when Redis is away."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import structlog
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from api.keys import new_key
from shared.errors import FatalError
from shared.settings import Settings, load_settings
from tests.redis_server import RedisServer, free_port

JOB = f"/jobs/{'0' * 32}"
SHOP, SHOP_ENTRY = new_key("shop")
PRESS, PRESS_ENTRY = new_key("press")


@contextmanager
def serving(settings: Settings, **changed: Any) -> Iterator[FlaskClient]:
    app: Flask = create_app(load_settings(**{**settings.model_dump(), **changed}))
    yield app.test_client()
    app.extensions["service"].store.close()


def ask(client: FlaskClient, key: str = "", address: str = "203.0.113.7", **headers: str) -> TestResponse:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        headers["X-API-Key"] = key
    return client.get(JOB, headers=headers, environ_base={"REMOTE_ADDR": address})


def test_every_reply_says_where_the_caller_stands(settings: Settings) -> None:
    with serving(settings, rate_limit="3/minute;100/day") as client:
        found = [ask(client) for _ in range(4)]
    assert [reply.status_code for reply in found] == [404, 404, 404, 429]
    for left, reply in zip((2, 1, 0, 0), found, strict=True):
        assert reply.headers["RateLimit-Policy"] == '"minute";q=3;w=60, "day";q=100;w=86400'
        minute, day = reply.headers["RateLimit"].split(", ")
        assert minute.startswith(f'"minute";r={left};t=')
        assert 1 <= int(minute.rpartition("=")[2]) <= 60
        assert day.startswith('"day";r=')
    refused = found[3]
    assert (refused.json or {})["code"] == "rate_limited"
    assert refused.headers["Retry-After"] == refused.headers["RateLimit"].split(", ")[0].rpartition("=")[2]


def test_after_retry_after_the_caller_is_served_again(settings: Settings, redis_server: RedisServer) -> None:
    with serving(settings, rate_limit="1/minute") as client:
        assert [ask(client).status_code for _ in range(2)] == [404, 429]
        retry_after = int(ask(client).headers["Retry-After"])
        with redis.Redis(port=redis_server.port) as connection:
            (key,) = connection.keys("limits*")
            assert connection.pttl(key) <= retry_after * 1000  # never told to come back too early
            connection.expire(key, 0)  # the time passes
        assert ask(client).status_code == 404


def test_each_key_has_its_own_count_and_wrong_keys_share_their_address(settings: Settings) -> None:
    with serving(settings, rate_limit="2/minute", api_keys=f"{SHOP_ENTRY},{PRESS_ENTRY}") as client:
        assert [ask(client, SHOP).status_code for _ in range(3)] == [404, 404, 429]
        assert ask(client, PRESS).status_code == 404
        assert ask(client, SHOP, address="198.51.100.1").status_code == 429
        guesses = [ask(client, f"cutout_{number}").status_code for number in range(3)]
        assert guesses == [401, 401, 429]
        assert ask(client, "cutout_9", address="198.51.100.1").status_code == 401


def test_an_open_api_counts_addresses_and_of_ipv6_networks(settings: Settings) -> None:
    with serving(settings, rate_limit="1/minute") as client:
        assert [ask(client, address=a).status_code for a in ("192.0.2.1", "192.0.2.1", "192.0.2.2")] == [404, 429, 404]
        hosts = ("2001:db8:1:2::a", "2001:db8:1:2::b", "2001:db8:1:3::a", "::ffff:192.0.2.1")
        assert [ask(client, address=address).status_code for address in hosts] == [404, 429, 404, 404]


def test_x_forwarded_for_is_believed_only_from_as_many_proxies_as_are_named(settings: Settings) -> None:
    with serving(settings, rate_limit="1/minute") as client:
        found = [ask(client, X_Forwarded_For=f"192.0.2.{number}").status_code for number in range(2)]
    assert found == [404, 429]  # anyone can write the header
    with serving(settings, rate_limit="1/minute", trusted_proxies=1) as client:
        sent = ("10.9.9.9, 192.0.2.50", "10.9.9.8, 192.0.2.50", "192.0.2.51")
        found = [ask(client, X_Forwarded_For=value).status_code for value in sent]
    assert found == [404, 429, 404]  # the last entry is the proxy's own, the ones before it are the client's story


def test_probes_pages_and_outputs_say_it_too_and_are_not_counted(settings: Settings) -> None:
    with serving(settings, rate_limit="2/day") as client:
        assert client.get("/nothing").headers["RateLimit"].startswith('"day";r=1;t=')
        for path in (
            "/ready",
            "/health",
            "/",
            "/docs",
            "/static/style.css",
            "/openapi.json",
            "/outputs/x",
            "/live",
        ) * 2:
            reply = client.get(path, buffered=True)
            assert reply.status_code != 429
            assert reply.headers["RateLimit-Policy"] == '"day";q=2;w=86400'
            assert reply.headers.get("RateLimit", "").startswith('"day";r=1;t=') is (path != "/live")
        assert [client.get("/nothing").status_code for _ in range(2)] == [404, 429]
        assert client.get("/docs", buffered=True).headers["RateLimit"].startswith('"day";r=0;t=')


def test_a_probe_of_life_does_not_ask_redis(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with (
            structlog.testing.capture_logs() as lines,
            serving(settings, rate_limit="1/day", redis_url=url) as client,
        ):
            assert client.get("/live").status_code == 200
    assert [line for line in lines if line["event"] == "rate_limit_off"] == []


def test_no_limit_no_headers(settings: Settings) -> None:
    with serving(settings) as client:
        assert not [name for name, _ in ask(client).headers if name.startswith("RateLimit")]


def test_without_redis_everybody_may_ask_and_the_log_says_so(settings: Settings) -> None:
    with (
        structlog.testing.capture_logs() as lines,
        serving(settings, rate_limit="1/day", redis_url=f"redis://127.0.0.1:{free_port()}/0") as client,
    ):
        found = [ask(client) for _ in range(3)]
    assert {reply.status_code for reply in found} == {503}  # the job's own need of Redis, not a 429 or 500
    warned = [line for line in lines if line["event"] == "rate_limit_off"]
    assert len(warned) == 1  # and the next requests do not wait for Redis again
    assert warned[0]["log_level"] == "warning"


def test_a_redis_that_comes_back_counts_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.limits._PAUSE_S", 0.0)
    server = RedisServer()
    with serving(settings, rate_limit="1/day", redis_url=server.url) as client:
        assert "RateLimit" not in ask(client).headers
        with server:
            assert [ask(client).status_code for _ in range(2)] == [404, 429]


@pytest.mark.parametrize("value", ["600", "0/minute", "6/fortnight", "1/minute;", "1/minute;2/minute", "1 per day"])
def test_a_wrong_limit_stops_the_start(value: str) -> None:
    with pytest.raises(FatalError, match="RATE_LIMIT"):
        load_settings(rate_limit=value)
