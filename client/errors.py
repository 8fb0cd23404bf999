"""What can go wrong, as one exception with the service's stable code."""

from collections.abc import Mapping
from typing import Any

#: Codes of errors that the client itself finds; all others are the service's (README, "Error codes").
CONNECTION_FAILED = "connection_failed"
WAIT_TIMEOUT = "wait_timeout"
DOWNLOAD_INCOMPLETE = "download_incomplete"
UNEXPECTED_REPLY = "unexpected_reply"

#: Exit statuses of the command line, beside 0: something failed; nothing was sent; Ctrl-C.
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

#: Statuses of a request that may succeed later; 422 may too, when the picture's own server was to blame.
_RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_RETRYABLE_CODES = frozenset({"source_unreachable", "source_timeout"})


class CutoutError(Exception):
    """The service refused or failed, or could not be reached.

    Attributes:
        code: stable identifier, the service's or one of the four above.
        status: HTTP status; None when there was no reply, or the error is a job's own.
        detail: the sentence for people.
        request_id: finds the request in the service's log; empty when there is none.
        retryable: True when the same request may succeed later.
        retry_after_s: how long the service asked to wait (s), if it did.
        job_id: the job, when one was made.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        request_id: str = "",
        retryable: bool = False,
        retry_after_s: float | None = None,
        job_id: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.code, self.detail, self.status = code, detail, status
        self.request_id, self.retryable = request_id, retryable
        self.retry_after_s, self.job_id = retry_after_s, job_id

    @classmethod
    def from_problem(cls, status: int, problem: Mapping[str, Any], retry_after_s: float | None) -> "CutoutError":
        """The error of a problem+json reply."""
        code = str(problem["code"])
        return cls(
            code,
            str(problem.get("detail") or problem.get("title") or code),
            status=status,
            request_id=str(problem.get("request_id") or ""),
            retryable=bool(problem.get("retryable", status in _RETRYABLE_STATUSES or code in _RETRYABLE_CODES)),
            retry_after_s=retry_after_s,
            job_id=problem.get("job_id"),
        )
