"""Celery's Redis transport with one client per channel, and an error that can be caught when that is closed.

The stock transport builds a client object for every acknowledgement and every message it takes, 12 for a job of four
cells; each fills a table of some hundred reply parsers. It was a tenth of a worker's CPU time (docs/performance.md).
A client is only a view of the channel's connection pool and safe to share between threads.
"""

from typing import Any

from kombu.transport import redis
from redis.exceptions import ConnectionError as RedisConnectionError


class SharedClientChannel(redis.Channel):
    _shared_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # has a connection of its own, and is kept by the channel already
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        # After a lost connection the channel makes a new pool; a client of the old one would be of no use.
        if self._shared_client is None or self._shared_client.connection_pool is not self.pool:
            self._shared_client = super()._create_client()  # type: ignore[no-untyped-call]
        return self._shared_client

    def _connparams(self, asynchronous: bool = False) -> Any:
        # A step that outlives its connection acknowledges on a channel that has none. The stock transport falls over
        # that with an AttributeError, which ends the worker; this error is one that its callers know.
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the connection of this channel was closed")
        return super()._connparams(asynchronous)  # type: ignore[no-untyped-call]
