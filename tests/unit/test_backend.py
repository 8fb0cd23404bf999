"""What becomes of a finished cell's count when Redis is away at that very moment."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import pytest
import redis

from shared.settings import load_settings
from tests.redis_server import RedisServer
from worker.app import make_worker_app


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that a test may kill; its file brings back what it had."""
    with RedisServer(persist=True) as server:
        yield server


def test_a_cell_that_ends_while_redis_is_away_is_counted_once_when_it_is_back(server: RedisServer) -> None:
    backend = make_worker_app(load_settings(redis_url=server.url)).backend
    parts = [SimpleNamespace(id=f"cell-{index}", group="g", group_index=index, chord=None) for index in range(2)]
    backend.on_chord_part_return(parts[0], "SUCCESS", "succeeded")
    server.stop()
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(backend.on_chord_part_return, parts[1], "SUCCESS", "succeeded")
        assert wait([told], timeout=1).not_done, "it has to wait for Redis"
        server.start()
        told.result(20)
    backend.on_chord_part_return(parts[1], "SUCCESS", "succeeded")  # as when its answer was lost
    with redis.Redis(port=server.port) as client:
        (counted,) = client.keys("*.j")
        assert client.zcard(counted) == 2
    backend.client.connection_pool.disconnect()
