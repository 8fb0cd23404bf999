"""A Redis client for many small commands: what redis-py does around each of them, without what nobody here asks of it.

redis-py borrows a connection from its pool for every command: it asks the kernel whether the connection is still open,
reports to metrics that are off, tells listeners that are none, and sets up a retry. With some 50 commands for a job
that is more than the commands themselves (docs/performance.md).
"""

import os
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError


class LeanRedis(Redis):
    """Sends single commands over connections that it keeps; everything else is redis-py's.

    A kept connection is one that the pool has lent for good. Whether Redis has closed it shows when it is used: then
    it goes back, and the command takes redis-py's own way, with its retries. Safe for threads.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Before anything can fail: redis-py closes a client that was never finished, too.
        self._kept: list[Any] = []
        self._kept_by = os.getpid()
        super().__init__(*args, **kwargs)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.connection is not None or self._kept_by != os.getpid():  # one connection for all, or a forked child
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        try:
            connection = self._kept.pop()
        except IndexError:
            connection = self.connection_pool.get_connection()
        try:
            connection.send_command(*args, **options)
            reply = self.parse_response(connection, args[0], **options)  # type: ignore[no-untyped-call]
        except BaseException as exc:
            is_lost = isinstance(exc, RedisConnectionError | RedisTimeoutError)
            self._give_back(connection, is_broken=is_lost or not isinstance(exc, Exception))
            if not is_lost:
                raise
        else:
            self._kept.append(connection)
            return reply
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        while self._kept:
            self._give_back(self._kept.pop(), is_broken=False)
        super().close()

    def _give_back(self, connection: Any, *, is_broken: bool) -> None:
        if is_broken:
            connection.disconnect()
        self.connection_pool.release(connection)
