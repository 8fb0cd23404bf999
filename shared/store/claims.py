"""Which job an Idempotency-Key stands for.

A request claims its key, with the id that its job will have, before it does any work. Whoever else sends the key finds
that id and can wait for the job's first event. The claim of a request that dies before its job is made ends after 30 s;
the script that creates the job turns it into one that lives as long as the job's record.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from shared.store.connection import translated
from shared.store.records import job_key

#: Lifetime of a claim whose job is not made yet (s): longer than writing two uploads to a slow disk takes.
CLAIM_TTL_S = 30

# KEYS: claim. ARGV: ttl, body, job id. Returns {job id, body} of whoever has the key after the call. A key whose job
# was made and is gone (expired or deleted) is free.
_TAKE = """
local holder = redis.call('HGET', KEYS[1], 'job_id')
if holder and (redis.call('HGET', KEYS[1], 'made') == '0' or redis.call('EXISTS', 'job:' .. holder) == 1) then
  return {holder, redis.call('HGET', KEYS[1], 'body')}
end
redis.call('HSET', KEYS[1], 'job_id', ARGV[3], 'body', ARGV[2], 'made', '0')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return {ARGV[3], ARGV[2]}
"""

# KEYS: claim. ARGV: job id. A claim whose job was made stays: the answer to that may be all that was lost.
_RELEASE = """
local claim = redis.call('HMGET', KEYS[1], 'job_id', 'made')
if claim[1] == ARGV[1] and claim[2] == '0' then return redis.call('DEL', KEYS[1]) end
return 0
"""


@dataclass(frozen=True)
class Claim:
    """Who has a key.

    Attributes:
        key: the claim's Redis key.
        job_id: the job that the key stands for, made or about to be.
        body: digest of the request that made it.
    """

    key: str
    job_id: str
    body: str


class Claims:
    """The part of the store that knows idempotency keys."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)
        self._release = redis.register_script(_RELEASE)

    def take(self, caller: str, key: str, body: str, job_id: str) -> Claim:
        """Claim a caller's `key` for a job that is about to be made, unless another has it."""
        # A digest: what clients use as keys is theirs, and neither its length nor its characters matter then.
        name = "idempotency:" + hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest()
        with translated():
            holder, held_body = self._take(keys=[name], args=[CLAIM_TTL_S, body, job_id])
        return Claim(name, holder, held_body)

    def release(self, claim: Claim) -> None:
        """Give a claim back whose job could not be made."""
        with translated():
            self._release(keys=[claim.key], args=[claim.job_id])

    def is_made(self, claim: Claim) -> bool:
        """Whether the claim's job is on record."""
        with translated():
            return bool(self._redis.exists(job_key(claim.job_id)))
