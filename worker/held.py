"""Messages that a worker holds: taken from the queue, not acknowledged yet.

Each worker keeps its own under its own name, so that those of a dead one can be given back and nobody else's.
"""

from collections.abc import Iterable, Iterator, Set
from typing import Any

import structlog
from celery import Celery
from celery.worker import state as worker_state

from shared import messages
from shared.store import Store
from shared.store.waiting import job_of_message

log = structlog.get_logger(__name__)

#: How many messages of a queue are read at once, next ones first, and how many of them again with the next ones: while
#: a queue is read, workers take from its end and the others move up.
_PAGE, _OVERLAP = 2000, 200


def held_options(worker_name: str) -> dict[str, str]:
    """The transport options that keep a worker's messages apart."""
    return {
        "unacked_key": f"unacked:{worker_name}",
        "unacked_index_key": f"unacked_index:{worker_name}",
        "unacked_mutex_key": f"unacked_mutex:{worker_name}",
    }


def tags_in_hand() -> set[str]:
    """The tags of the messages that this process works on or is about to."""
    requests = [*worker_state.active_requests, *worker_state.reserved_requests]
    return {request.message.delivery_tag for request in requests}


def tags_noted(app: Celery, worker_name: str) -> set[str]:
    """The tags of the messages that Redis says a worker holds."""
    with app.connection_for_write() as connection:
        tags = connection.default_channel.client.hkeys(held_options(worker_name)["unacked_key"])
    return {tag.decode() for tag in tags}


def give_back_tags(app: Celery, worker_name: str, tags: Iterable[str]) -> None:
    """Put single messages that a worker is said to hold back at the head of the queue."""
    with app.connection_for_write() as connection:
        connection.transport_options = {**connection.transport_options, **held_options(worker_name)}
        channel = connection.default_channel
        client = channel.client
        for tag in tags:
            channel.qos.restore_by_tag(tag, client, leftmost=True)


def give_back(app: Celery, store: Store, worker_name: str) -> tuple[int, list[str]]:
    """Put messages that a dead worker of this name held back at the head of the queue.

    Without this they return only after the visibility time-out of an hour. Safe because steps may run twice; two
    living workers must not share a name, or they would do each other's work twice.

    Returns:
        How many there were, and the open jobs that were under way: each of them may be what killed it.
    Raises:
        StoreUnavailable, OperationalError, RedisError: Redis does not answer.
    """
    suspects = store.under_way.count_crash(worker_name)  # first: who takes the messages shall know
    tags = tags_noted(app, worker_name)
    give_back_tags(app, worker_name, tags)
    if tags:
        log.warning("messages_given_back", count=len(tags), worker=worker_name, suspects=suspects)
    return len(tags), suspects


def jobs_with_messages(app: Celery, worker_names: Iterable[str], wanted: Set[str]) -> set[str]:
    """Those of the `wanted` jobs that a message waits for or a worker holds one of.

    Queues are read to their ends if need be: messages of canceled jobs stay in them and count for no limit. As a rule
    the oldest jobs are wanted, whose messages come first. A message that moves while this looks can be missed, so one
    look proves nothing.
    """
    found: set[str] = set()
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        # In the order that a message takes.
        for page in (page for queue in _QUEUES for page in _pages(client, queue)):
            found |= wanted & {job_of_message(text) for text in page}
            if found == wanted:
                return found
        held = [text for name in worker_names for text in client.hvals(held_options(name)["unacked_key"])]
    return found | (wanted & {job_of_message(text, is_held=True) for text in held})


def _pages(client: Any, queue: str) -> Iterator[list[bytes]]:
    """The messages of a queue, next ones first."""
    seen = 0
    while page := client.lrange(queue, -seen - _PAGE, -seen - 1):
        yield page
        seen += _PAGE - _OVERLAP


_QUEUES = (messages.QUEUE, messages.CELL_QUEUE)
