"""Celery's Redis transport with one client per channel, one command for each message taken or done with, and an error
that can be caught when the channel is closed.

The stock transport builds a client object for every acknowledgement and every message it takes, 12 for a job of four
cells; each fills a table of some hundred reply parsers. It was a tenth of a worker's CPU time (docs/performance.md).
A client is only a view of the channel's connection pool and safe to share between threads.

What was taken and not acknowledged is kept in Redis (a sorted set by time, and a hash). The stock transport changes
both in a MULTI/EXEC of four commands; a script is as indivisible and is one.
"""

import hashlib
import time
from typing import Any

from kombu.transport import redis
from kombu.transport.virtual import QoS as VirtualQoS
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from shared import messages
from shared.store.counters import DELIVERIES, METRICS, REDELIVERIES, field
from shared.store.lean import LeanRedis

# KEYS: index, messages, metrics. ARGV: time, tag, message, then what to count.
_TAKE = """
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
for i = 4, #ARGV do redis.call('HINCRBY', KEYS[3], ARGV[i], 1) end
return redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
"""
# KEYS: index, messages. ARGV: tag.
_DONE = "redis.call('ZREM', KEYS[1], ARGV[1]) return redis.call('HDEL', KEYS[2], ARGV[1])"
#: What Redis knows them by once it has run them.
_SHA = {script: hashlib.sha1(script.encode()).hexdigest() for script in (_TAKE, _DONE)}  # noqa: S324 - Redis' choice


class ScriptedQoS(redis.QoS):
    """The stock bookkeeping of unacknowledged messages: same keys, same values, fewer commands.

    Every message taken is counted for /metrics in the same command, and once more when a worker had it before.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        delivery = message.delivery_info
        kept = dumps([message._raw, delivery["exchange"], delivery["routing_key"]])  # type: ignore[no-untyped-call]
        self._run(_TAKE, time.time(), delivery_tag, kept, *_counted(message))
        VirtualQoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: str) -> None:
        self._run(_DONE, delivery_tag)
        VirtualQoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def _run(self, script: str, *args: Any) -> None:
        with self.channel.conn_or_acquire() as client:
            keys = (self.unacked_index_key, self.unacked_key, METRICS)
            try:
                client.evalsha(_SHA[script], len(keys), *keys, *args)
            except NoScriptError:  # a Redis that was started since
                client.eval(script, len(keys), *keys, *args)


def _counted(message: Any) -> list[str]:
    task = message.headers.get("task") if isinstance(message.headers, dict) else None
    # Only our own tasks: names in messages are anybody's who can write to Redis, labels are few.
    if task not in messages.TASKS:
        return []
    names = [DELIVERIES, REDELIVERIES] if message.delivery_info.get("redelivered") else [DELIVERIES]
    return [field(name, task) for name in names]


class SharedClientChannel(redis.Channel):
    QoS = ScriptedQoS
    _shared_client: Any = None

    def _get_client(self) -> Any:
        return LeanRedis

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
