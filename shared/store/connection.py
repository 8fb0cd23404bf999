"""How the store reaches Redis, and the one place where redis-py's errors become ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.backoff import ExponentialBackoff
from redis.exceptions import DataError, OutOfMemoryError, RedisError, ResponseError
from redis.retry import Retry

from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.store.lean import LeanRedis

#: Longest wait for one answer (s).
SOCKET_TIMEOUT_S = 5.0

#: Redis answered, and with an error: a command that this user may not send, for example.
Refused = ResponseError


def connect(settings: Settings, socket_timeout_s: float = SOCKET_TIMEOUT_S) -> Any:
    """A client with a pool of its own. Nothing is connected yet."""
    return LeanRedis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        socket_timeout=socket_timeout_s,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        socket_keepalive=True,
        # Each waiter holds a connection; the cap on waiters is the API's, not the pool's.
        max_connections=10_000,
        # A quick second try covers connections that a Redis restart left dead; more would only make clients wait. This
        # is the third: the client's own comes before all of redis-py's.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 1),
    )


@contextmanager
def translated() -> Iterator[None]:
    """Errors of Redis inside the block are StoreUnavailable."""
    try:
        yield
    except DataError:
        raise  # an argument of a wrong type, from a message that is none of ours: no waiting mends that
    except (RedisError, OSError) as exc:
        raise unavailable(exc) from exc


def unavailable(exc: BaseException) -> StoreUnavailable:
    """What an error of Redis, or of a library on top of it, means for whoever needs it."""
    if is_memory_full(exc):
        return memory_full()
    return StoreUnavailable("Redis does not answer; check that it runs and that REDIS_URL is right")


def is_memory_full(exc: BaseException) -> bool:
    """Whether Redis refused a command because it is at its memory limit."""
    # Inside a script it is an error like any other, with these words in it.
    return isinstance(exc, OutOfMemoryError) or "OOM command not allowed" in str(exc)


def memory_full() -> StoreUnavailable:
    return StoreUnavailable("Redis is at its memory limit (maxmemory); records that expire make room, or raise it")
