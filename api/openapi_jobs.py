"""openapi.json, the part about jobs: /process' parameters, /jobs and what hangs on it."""

from openapi_pydantic import MediaType, Operation, Parameter, PathItem, Schema
from openapi_pydantic import Response as Reply

from api import examples
from api.openapi_parts import header_refs, json_reply, operation, parameter, path_parameter
from api.schemas import JobEnvelope, JobList, ProcessReply
from shared.errors import (
    AppError,
    DeviceFailed,
    DeviceQueueFull,
    ExtractionError,
    IdempotencyKeyReused,
    InferenceFailed,
    InternalError,
    InvalidRequest,
    JobAlreadyFinal,
    JobCanceled,
    JobExpired,
    JobNotFound,
    JobStillOpen,
    NothingToRetry,
    OutOfDeviceMemory,
    OutputNotWritten,
    OutputTooLarge,
    QueueFull,
    SourceAddressForbidden,
    SourceExpired,
    SourceNotAnImage,
    SourceTimeout,
    SourceTooLarge,
    SourceUnreachable,
    StoreUnavailable,
    TooManyEventStreams,
    WorkerCrashed,
)
from shared.jobs import JOB_ID, SIDES, JobStatus, cell_names

#: What can end a job, and so a request that waits for it.
ENDINGS: tuple[type[AppError], ...] = (
    SourceUnreachable,
    SourceTimeout,
    SourceTooLarge,
    SourceNotAnImage,
    SourceAddressForbidden,
    InferenceFailed,
    OutOfDeviceMemory,
    OutputNotWritten,
    OutputTooLarge,
    InternalError,
    JobCanceled,
    JobExpired,
    DeviceQueueFull,
    DeviceFailed,
    WorkerCrashed,
    *ExtractionError.__subclasses__(),
)


def job_paths(models: tuple[str, ...]) -> dict[str, PathItem]:
    return {
        "/jobs": PathItem(get=_list()),
        "/jobs/{job_id}": PathItem(get=_job(), delete=_delete()),
        "/jobs/{job_id}/cancel": PathItem(post=_cancel()),
        "/jobs/{job_id}/retry": PathItem(post=_retry(models)),
        "/jobs/{job_id}/events": PathItem(get=_events()),
    }


def wait_parameters() -> list[Parameter]:
    """How long a request that makes a job waits for it."""
    return [
        parameter(
            "header",
            "Prefer",
            "respond-async: a 202 at once. wait=N: wait at most N seconds (RFC 7240). The default is to wait.",
            {"type": "string", "examples": ["respond-async", "wait=10"]},
        ),
        parameter(
            "query",
            "wait",
            "false is Prefer: respond-async, a number is Prefer: wait=N; wins over the header",
            {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0}], "examples": [False, 10]},
        ),
        parameter(
            "header",
            "Cancel-After",
            "The job expires when it is not done so long after it was accepted: seconds, or with s, m or h; 1s to 24h",
            {"type": "string", "pattern": "^[0-9]{1,6}[smh]?$", "examples": ["90s", "15m", "2h", "45"]},
        ),
    ]


def once_parameter() -> Parameter:
    """What makes a request the same as an earlier one."""
    return parameter(
        "header",
        "Idempotency-Key",
        "A name of your own for this request. Sent again with the same request it is the same job, also while that "
        "runs and from two requests at the same instant; as long as the job's record lives.",
        {"type": "string", "pattern": "^[!-~]{1,255}$", "examples": ["order-8812-shirt"]},
    )


def fresh_parameter() -> Parameter:
    """What makes a picture other than an earlier one."""
    return parameter(
        "header",
        "Cache-Control",
        "no-cache: compute every cell, even when the same picture was cut with the same options before",
        {"type": "string", "examples": ["no-cache"]},
    )


def _list() -> Operation:
    return operation(
        "jobs",
        "Your jobs, newest first",
        {200: json_reply("A page of jobs", JobList, example=examples.listing())},
        tag="Jobs",
        errors=(InvalidRequest, StoreUnavailable),
        parameters=[
            parameter(
                "query",
                "limit",
                "Most jobs on a page; a page of filtered jobs may have fewer and yet a next one",
                {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
            ),
            parameter(
                "query",
                "cursor",
                "next_cursor of the page before",
                {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "examples": [examples.CURSOR]},
            ),
            parameter(
                "query",
                "status",
                "Only jobs in this state; give it again for more states",
                {"type": "array", "items": {"enum": [str(status) for status in JobStatus]}, "examples": [["failed"]]},
            ),
            parameter(
                "query",
                "id",
                "Only jobs of this id of yours",
                {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", "examples": ["123"]},
            ),
        ],
    )


def _job() -> Operation:
    return operation(
        "job",
        "How a job stands",
        {200: json_reply("The job", JobEnvelope, example=examples.envelope(JobStatus.QUEUED))},
        tag="Jobs",
        errors=(JobNotFound, StoreUnavailable),
        parameters=[_job_id()],
    )


def _cancel() -> Operation:
    return operation(
        "cancel",
        "End a job: its next step does not start, finished cells stay; again: the same answer",
        {200: json_reply("The canceled job", JobEnvelope, example=examples.envelope(JobStatus.CANCELED))},
        tag="Jobs",
        errors=(JobNotFound, JobAlreadyFinal, StoreUnavailable),
        parameters=[_job_id()],
    )


def _delete() -> Operation:
    return operation(
        "delete",
        "Remove a job with its events and all of its files; an open one is canceled first",
        {
            204: Reply(
                description="Nothing is left of it, but Gemini's answer for equal pictures", headers=header_refs()
            )
        },
        tag="Jobs",
        errors=(JobNotFound, StoreUnavailable),
        parameters=[_job_id()],
    )


def _retry(models: tuple[str, ...]) -> Operation:
    return operation(
        "retry",
        "A new job for the cells that failed; good cells are taken over at once",
        {
            200: json_reply(
                "The new job has ended with at least one cutout",
                ProcessReply,
                "PreferenceApplied",
                "IdempotentReplayed",
                example=examples.result(cell_names(SIDES, models)),
            ),
            202: json_reply(
                "The new job is queued",
                JobEnvelope,
                "Location",
                "PreferenceApplied",
                "RetryAfter",
                "IdempotentReplayed",
                example=examples.envelope(JobStatus.QUEUED),
            ),
        },
        tag="Jobs",
        errors=(
            InvalidRequest,
            IdempotencyKeyReused,
            JobNotFound,
            JobStillOpen,
            NothingToRetry,
            SourceExpired,
            QueueFull,
            StoreUnavailable,
            *ENDINGS,
        ),
        parameters=[
            _job_id(),
            parameter(
                "query",
                "cell",
                "Compute this cell and no other, whether it had failed or not; give it again for more",
                {"type": "array", "items": {"type": "string"}, "examples": [["back_birefnet"]]},
            ),
            *wait_parameters(),
            once_parameter(),
        ],
        error_headers=("PreferenceApplied", "IdempotentReplayed"),
    )


def _events() -> Operation:
    return operation(
        "events",
        "What happens to a job, as server-sent events: states, cells with their addresses, and the end",
        {
            200: Reply(
                description="Events as they come, and a comment every 15 s without one; ends with the final state",
                headers=header_refs("CacheControl", "XAccelBuffering"),
                content={"text/event-stream": MediaType(media_type_schema=_one_event(), example=examples.events())},
            ),
            204: Reply(description="The job has ended, and you have seen all of its events", headers=header_refs()),
        },
        tag="Jobs",
        errors=(InvalidRequest, JobNotFound, TooManyEventStreams, StoreUnavailable),
        parameters=[
            _job_id(),
            parameter("header", "Last-Event-ID", "Only events after this one", _event_id()),
            parameter("query", "last_event_id", "The same for clients without headers; the header wins", _event_id()),
        ],
    )


def _one_event() -> Schema:
    """Of a stream, OpenAPI 3.1 describes one event."""
    data = {"type": "string", "contentMediaType": "application/json", "description": "What happened, as JSON"}
    properties = {
        "id": {"type": "string", "description": "For Last-Event-ID"},
        "event": {"enum": ["status", "cell"], "description": "status: of the job; cell: one of its cells"},
        "data": data,
        "retry": {"type": "integer", "description": "How long to wait before asking again (ms)"},
    }
    return Schema.model_validate({"type": "object", "description": "One event", "properties": properties})


def _event_id() -> dict[str, object]:
    return {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,15})?$", "examples": ["1763976612250-0"]}


def _job_id() -> Parameter:
    return path_parameter("job_id", "From the 202 or the result", examples.JOB_ID, JOB_ID.pattern)
