"""What is lost between the steps is found here: messages that nobody works on, and open jobs without a message.

Redis gives a message to a worker before the worker has noted that it holds it, and an API may die between a job's
record and its message. Each is a moment, and each would leave a job open for ever. So every worker looks: an open job
that has not changed for RESCUE_AFTER_S and of which no message exists is planned again. Steps may run twice, so a job
that was rescued without need comes to no harm.
"""

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.errors import JobNotFound, StoreUnavailable
from shared.messages import CELL_QUEUE, send_plan
from shared.settings import Settings
from shared.store import Store
from worker.held import give_back, give_back_tags, jobs_with_messages, tags_in_hand, tags_noted
from worker.pipeline import CANVAS_LOST, CANVAS_MARK
from worker.ticker import Ticker

log = structlog.get_logger(__name__)

#: How often to look (s); longer than a worker's pause between two reports, so by the second look a living one is seen.
_EVERY_S = 5.0
#: Most jobs that are looked at in one go.
_AT_ONCE = 1000


class Rescuer(Ticker):
    """Looks for what was lost until it is closed."""

    def __init__(self, settings: Settings, store: Store, app: Celery) -> None:
        super().__init__("rescuer", _EVERY_S)
        self._name, self._after_s = settings.worker_name, settings.rescue_after_s
        self._store, self._app = store, app
        # What the last look found: only what is found twice is taken for lost.
        self._absent: set[str] = set()
        self._dropped: set[str] = set()
        self._lost: set[tuple[str, float]] = set()
        # How many of the jobs that have not changed for the longest time were looked at before.
        self._looked_at = 0

    def tick(self) -> None:
        """Look once."""
        try:
            self._give_back_for_the_dead()
            self._give_back_dropped()
            self._plan_again()
        except (StoreUnavailable, OperationalError, RedisError, OSError) as exc:
            log.warning("rescue_waiting", detail=repr(exc)[:300])
        except Exception:
            log.exception("rescue_failed")  # one entry that cannot be read must not end the rescue of all others

    def _give_back_for_the_dead(self) -> None:
        absent = {name for name, reports in self._store.holders().items() if not reports and name != self._name}
        for name in absent & self._absent:
            give_back(self._app, self._store, name)
            self._store.drop_holder(name)
        self._absent = absent

    def _give_back_dropped(self) -> None:
        """Messages of a connection that was lost: noted as held, but their acknowledgement found nobody."""
        try:
            dropped = tags_noted(self._app, self._name) - tags_in_hand()
        except RuntimeError:  # a step began or ended while they were listed
            return
        if again := dropped & self._dropped:
            give_back_tags(self._app, self._name, again)
            log.warning("messages_given_back", count=len(again), worker=self._name, suspects=[])
        self._dropped = dropped

    def _plan_again(self) -> None:
        stalled = self._store.stalled(self._after_s, _AT_ONCE, skip=self._looked_at)
        if not stalled:
            self._lost, self._looked_at = set(), 0
            return
        job_ids = {job_id for job_id, _ in stalled}
        known = jobs_with_messages(self._app, {*self._store.holders(), self._name}, job_ids)
        lost = {(job_id, since) for job_id, since in stalled if job_id not in known}
        for job_id, _ in sorted(lost & self._lost, key=lambda pair: pair[1]):
            self._rescue(job_id)
        self._lost = lost
        if not lost:  # otherwise a second look at the same ones decides
            self._looked_at = self._looked_at + _AT_ONCE if len(stalled) == _AT_ONCE else 0

    def _rescue(self, job_id: str) -> None:
        try:
            job = self._store.get(job_id)
            self._store.set_mark(job_id, CANVAS_MARK, CANVAS_LOST)
        except JobNotFound:
            self._store.forget_open(job_id)
            return
        log.warning("job_rescued", job_id=job_id, status=job.status.value)
        send_plan(self._app, job_id, job.request_id, queue=CELL_QUEUE)  # it has waited its turn already
        self._store.touch(job_id)
