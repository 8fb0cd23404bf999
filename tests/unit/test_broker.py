"""The worker's own transport: one client per channel, on the pool that the channel has now."""

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
