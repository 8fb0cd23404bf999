"""Every Redis key of the service and its lifetime; with shared/messages.py the only code that talks to Redis.

    job:{job_id}                hash    the record: status, times, sources, cell:{name}, mark:{name}, result, error
    job:{job_id}:events         stream  one entry {"data": JSON} per change; about the last 200
    job:{job_id}:ended          stream  its one entry comes when the job ends, for those who wait for nothing else
    job:{job_id}:webhooks       hash    event id -> a webhook's delivery (JSON): type, time, state, tries
    webhooks:due                zset    deliveries under way, by the time of their next try (milliseconds)
    jobs:queued                 zset    jobs no worker has begun, by time of creation (microseconds)
    jobs:deadlines              zset    open jobs that have a deadline, by that time (seconds)
    jobs:open                   zset    jobs that have not ended, by time of their last change (seconds)
    jobs:of:{caller}            zset    a caller's jobs, by time of creation (microseconds)
    jobs:id:{caller}:{id}       zset    the same, of one client id
    jobs:pace                   hash    how fast jobs are done: moving averages (pace.py)
    idempotency:{digest}        hash    which job an Idempotency-Key stands for: body, job_id, made
    cell:{digest}               string  where the files of a finished cell are, for the result cache (JSON)
    outputs:removed:{job_id}    string  when a job's outputs were removed (ISO time)
    metrics                     hash    counters of /metrics (counters.py)
    extraction:calls            zset    calls to Gemini in the last minute (turns.py)
    workers                     set     names of workers that have reported
    workers:holders             set     names of workers that may hold messages
    worker:{name}               string  a worker's latest report (JSON)
    worker:{name}:jobs          hash    jobs it is working on -> number of steps
    limits:...                  string  requests of a caller in the current window, for as long (api/limits.py)

Job keys live `job_ttl_s` after the job's last change, what tells of its end 60 s after that, its idempotency key with
the record (30 s until the job is made). The
listings live twice as long after their last new job and lose entries that are older, or whose record has expired when
a listing meets them. Cached cells live `result_cache_ttl_s` after their last use, the pace `job_ttl_s`, as does a note
that a job's outputs were removed; a worker's report lives 15 s and is renewed by its heartbeat. The counters stay.
"""

from shared.store.cells import KeptCell
from shared.store.claims import Claim
from shared.store.counters import Counters
from shared.store.deliveries import Deliveries, Delivery, WebhookReport
from shared.store.events import Event
from shared.store.index import Page
from shared.store.jobs import EVENTS_KEPT, Store
from shared.store.records import EXTRACTION_MARK
from shared.store.workers import WORKER_TTL_S

__all__ = [
    "EVENTS_KEPT",
    "EXTRACTION_MARK",
    "WORKER_TTL_S",
    "Claim",
    "Counters",
    "Deliveries",
    "Delivery",
    "Event",
    "KeptCell",
    "Page",
    "Store",
    "WebhookReport",
]
