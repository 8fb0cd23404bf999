"""The store's Redis client: its short way for single commands, and what happens when that fails."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from shared.store.lean import LeanRedis
from tests.redis_server import RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(persist=True) as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[LeanRedis]:
    client = LeanRedis.from_url(server.url, decode_responses=True)
    assert isinstance(client, LeanRedis)
    yield client
    client.close()


def connections(client: LeanRedis) -> int:
    return len(client.connection_pool._in_use_connections) + len(client.connection_pool._available_connections)


def test_replies_are_those_of_the_stock_client(client: LeanRedis) -> None:
    assert client.set("word", "one") is True
    assert client.hset("hash", mapping={"a": "1", "b": "2"}) == 2
    assert client.hgetall("hash") == {"a": "1", "b": "2"}
    with client.pipeline() as pipe:
        pipe.get("word")
        pipe.hget("hash", "b")
        assert pipe.execute() == ["one", "2"]


def test_one_connection_serves_command_after_command(client: LeanRedis) -> None:
    for _ in range(20):
        client.incr("count")
    assert connections(client) == 1


def test_every_thread_gets_the_reply_to_its_own_command(client: LeanRedis) -> None:
    begin = threading.Barrier(8)

    def echo(number: int) -> bool:
        begin.wait(10)
        return all(client.echo(f"{number}-{turn}") == f"{number}-{turn}" for turn in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(echo, range(8)))
    assert connections(client) <= 8


def test_a_refused_command_costs_no_connection(client: LeanRedis) -> None:
    client.set("word", "one")
    for _ in range(3):
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            client.lpush("word", "x")
    assert client.get("word") == "one"
    assert connections(client) == 1


def test_commands_go_on_after_redis_was_started_again(server: RedisServer, client: LeanRedis) -> None:
    """Given connections that a restart has closed, when the next commands come, then none of them sees that."""
    begin = threading.Barrier(4)

    def use(_: int) -> None:
        begin.wait(10)
        client.blpop(["nothing"], timeout=0.3)  # so long that each thread has a connection of its own

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    client.set("word", "one")
    server.stop()
    server.start()
    assert [client.get("word") for _ in range(4)] == ["one"] * 4


def test_a_redis_that_is_away_is_an_error_and_comes_back(server: RedisServer) -> None:
    client = LeanRedis.from_url(server.url, decode_responses=True, retry=Retry(NoBackoff(), 0))
    client.set("word", "one")
    server.stop()
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            client.get("word")
    server.start()
    assert client.get("word") == "one"
    client.close()


def test_a_reply_that_comes_too_late_is_nobody_else_s(server: RedisServer) -> None:
    client = LeanRedis.from_url(server.url, decode_responses=True, socket_timeout=1, retry=Retry(NoBackoff(), 0))
    assert isinstance(client, LeanRedis)
    for turn in range(3):
        with pytest.raises(RedisTimeoutError):
            client.blpop(["nothing"], timeout=1.5)
        assert client.echo(f"{turn}") == f"{turn}"
    assert connections(client) == 1
    client.close()


def test_what_is_left_of_a_reply_that_cannot_be_read_is_nobody_else_s(client: LeanRedis) -> None:
    """Given a list of which the first entry is no UTF-8, then the other entries are not the next command's reply."""
    client.rpush("list", b"\xff", "one", "two")
    with pytest.raises(UnicodeDecodeError):
        client.lrange("list", 0, -1)
    assert client.echo("three") == "three"
    assert connections(client) == 1


def test_an_interrupted_command_leaves_no_reply_for_the_next(
    client: LeanRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a command that was sent and whose reply nobody has read, then the connection is not used again."""
    client.set("word", "one")
    with monkeypatch.context() as patch:

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(client, "parse_response", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.echo("left over")
    assert client.get("word") == "one"
