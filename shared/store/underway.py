"""Which jobs a worker is working on, and how often a job was being worked on when its worker died.

A worker that dies cannot say what killed it. So it notes what it begins and what it has ended, and whoever gives its
messages back counts one crash for each open job that it had begun. A job that has been counted is begun only alone
(worker/crashes.py): then nothing else can be to blame.
"""

from typing import Any

from shared.jobs import OPEN
from shared.store.connection import translated
from shared.store.records import job_key

# KEYS: job, the worker's jobs. ARGV: job id, "1" when it is alone. Returns the job's crashes; with any, only a step
# that is alone is noted.
_BEGIN = """
local crashes = tonumber(redis.call('HGET', KEYS[1], 'mark:crashes') or '0')
if crashes == 0 or ARGV[2] == '1' then redis.call('HINCRBY', KEYS[2], ARGV[1], 1) end
return crashes
"""

# KEYS: the worker's jobs. ARGV: job id, how often it was noted.
_END = """
if redis.call('HINCRBY', KEYS[1], ARGV[1], -tonumber(ARGV[2])) <= 0 then redis.call('HDEL', KEYS[1], ARGV[1]) end
"""

# KEYS: the worker's jobs. ARGV: open states. Returns the jobs that were counted.
_COUNT = """
local open, counted = {}, {}
for _, status in ipairs(ARGV) do open[status] = true end
for _, job_id in ipairs(redis.call('HKEYS', KEYS[1])) do
  if open[redis.call('HGET', 'job:' .. job_id, 'status') or ''] then
    redis.call('HINCRBY', 'job:' .. job_id, 'mark:crashes', 1)
    counted[#counted + 1] = job_id
  end
end
redis.call('DEL', KEYS[1])
return counted
"""


class UnderWay:
    """The part of the store that knows who works on what. Every method may raise StoreUnavailable."""

    def __init__(self, client: Any) -> None:
        self._redis = client
        self._begin, self._end, self._count = (client.register_script(text) for text in (_BEGIN, _END, _COUNT))

    def begin(self, worker: str, job_id: str, *, is_alone: bool = False) -> int:
        """Note that a worker begins a step of a job, and say how often the job was under way when a worker died.

        A job with crashes is noted only when the step is alone in its worker.
        """
        with translated():
            return int(self._begin(keys=[job_key(job_id), _key(worker)], args=[job_id, int(is_alone)]))

    def end(self, worker: str, job_id: str, count: int = 1) -> None:
        """Take back `count` notes: the steps have ended, however they did."""
        with translated():
            self._end(keys=[_key(worker)], args=[job_id, count])

    def count_crash(self, worker: str) -> list[str]:
        """Count a crash for every open job that a dead worker was working on, and forget what it had begun.

        Returns:
            These jobs.
        """
        with translated():
            return [str(job_id) for job_id in self._count(keys=[_key(worker)], args=sorted(OPEN))]

    def forget(self, worker: str) -> None:
        """Forget what a worker had begun: it hands its work back, and no job is to blame for its end."""
        with translated():
            self._redis.delete(_key(worker))


def _key(worker: str) -> str:
    return f"worker:{worker}:jobs"
