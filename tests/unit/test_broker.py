"""The worker's own transport: one client per channel, on the pool that the channel has now."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.settings import Settings
from worker.app import make_worker_app
from worker.consumer import TolerantTransport


def test_a_channel_keeps_one_client_until_its_pool_is_replaced(settings: Settings) -> None:
    with make_worker_app(settings).connection_for_write() as connection:
        assert type(connection.transport) is TolerantTransport
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as again:
            assert first is again
            assert first.ping()
        assert channel.client is not first  # what waits for messages has a client of its own
        channel._pool = None  # as after a lost connection
        with channel.conn_or_acquire() as later:
            assert later is not first
            assert later.ping()


def test_an_acknowledgement_on_a_closed_connection_is_an_error_that_its_callers_know(settings: Settings) -> None:
    """Given a step that outlives its connection, then what it gets is not the AttributeError that ended the worker."""
    connection = make_worker_app(settings).connection_for_write()
    channel = connection.default_channel
    errors = connection.connection_errors
    connection.close()
    with pytest.raises(errors, match="closed"):
        channel.qos.ack("some-tag")


def test_messages_can_be_given_back_after_all_threads_have_used_the_channel_at_once(settings: Settings) -> None:
    """Given more threads than kombu's pool has places, each with a connection that the client keeps, then one is left
    for the transaction that puts a message back."""
    threads = 12
    begin = threading.Barrier(threads)
    app = make_worker_app(settings.model_copy(update={"worker_threads": threads}))
    with app.connection_for_write() as connection:
        channel = connection.default_channel

        def use(_: int) -> None:
            begin.wait(10)
            with channel.conn_or_acquire() as client:
                client.blpop(["nothing"], timeout=0.3)  # so long that each thread has a connection of its own

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(use, range(threads)))
        channel.qos.restore_by_tag("some-tag")
