"""What waits in the broker's lists, as kombu's Redis transport writes them: read for /metrics, never changed."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from shared.jobs import utc_now
from shared.store.connection import translated
from shared.store.records import job_key


class WaitingMessages:
    """The part of the store that looks at queues of messages."""

    _redis: Any

    def waiting_messages(self, queues: Sequence[str]) -> dict[str, int]:
        """How many messages wait in each queue; those that a worker has taken do not count."""
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.llen(queue)
            return dict(zip(queues, pipe.execute(), strict=True))

    def oldest_message_s(self, queue: str) -> float:
        """Seconds since the job of the message that is next in a queue was begun; 0 when none waits."""
        with translated():
            message = self._redis.lindex(queue, -1)  # new ones come in at the other end
            job_id = None if message is None else job_of_message(message)
            begun = None if job_id is None else self._redis.hget(job_key(job_id), "started_at")
        return 0.0 if begun is None else max(0.0, (utc_now() - datetime.fromisoformat(begun)).total_seconds())


def job_of_message(text: str | bytes, *, is_held: bool = False) -> str | None:
    """The job a message is about; None for one of another form, which is discarded when its turn comes.

    Args:
        is_held: as a worker keeps it that has taken it: [message, exchange, routing key].
    """
    try:
        message = json.loads(text)[0] if is_held else json.loads(text)
        _, arguments, _ = json.loads(base64.b64decode(message["body"]))
        return str(arguments["job_id"])
    except (TypeError, ValueError, LookupError):
        return None
