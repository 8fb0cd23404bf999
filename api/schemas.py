"""Typed requests and replies: every check of outside input that needs no pixels, and the source of openapi.json."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from werkzeug.datastructures import FileStorage

from shared.errors import InvalidRequest
from shared.jobs import CellRecord, JobStatus
from shared.options import JobOptions

#: Largest integer that every JSON reader keeps exactly.
ID_LIMIT = 2**53
URL_LIMIT = 8192

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID_SENTENCE = f"must be an integer up to {ID_LIMIT} or a string of 1-64 of A-Z a-z 0-9 _ -"
_DATA_URI = re.compile(r"data:[A-Za-z0-9!#$&^_.+/-]*(;[A-Za-z0-9!#$&^_.+-]+=[^;,\"]*)*(;base64)?,", re.IGNORECASE)


def _check_id(value: object) -> int | str:
    # bool is an int to Python, but `true` is not a number to a client.
    if isinstance(value, int) and not isinstance(value, bool) and -ID_LIMIT <= value <= ID_LIMIT:
        return value
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise ValueError(_ID_SENTENCE)


def _check_source(value: object) -> str | FileStorage:
    if isinstance(value, FileStorage):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("must be an http(s) URL or a data: URI")
    if value[:5].lower() == "data:":
        if not _DATA_URI.match(value):
            raise ValueError("is not a data: URI such as data:image/png;base64,...")
        return value
    return _check_url(value)


def _check_url(value: str) -> str:
    if len(value) > URL_LIMIT:
        raise ValueError(f"is a URL of {len(value)} characters; the limit is {URL_LIMIT}")
    if re.search(r"[\x00-\x20\x7f\\]", value):
        raise ValueError("must not contain spaces, backslashes or control characters; write them as %20 and so on")
    try:
        parts = urlsplit(value)
        has_port = parts.port is None or parts.port > 0
    except ValueError as exc:
        # The parser's own words repeat what it could not read, which may be a password.
        raise ValueError("is not a URL that can be read; check its host and port") from exc
    if parts.scheme not in ("http", "https"):
        raise ValueError("must begin with http://, https:// or data:")
    if not parts.hostname or not has_port:
        raise ValueError("must name a host, as in https://example.com/front.png")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password")
    return value


ClientId = Annotated[
    int | str,
    PlainValidator(_check_id),
    WithJsonSchema(
        {
            "oneOf": [
                {"type": "integer", "minimum": -ID_LIMIT, "maximum": ID_LIMIT},
                {"type": "string", "pattern": f"^{_ID.pattern}$"},
            ],
            "description": "Your own id of the design; comes back exactly as sent, and is part of the file names.",
        }
    ),
]
SourceInput = Annotated[
    str | FileStorage,
    PlainValidator(_check_source),
    WithJsonSchema(
        {
            "type": "string",
            "format": "uri",
            "pattern": "^([Hh][Tt][Tt][Pp][Ss]?|[Dd][Aa][Tt][Aa]):",
            "description": "http(s) URL without credentials, or a data: URI, of the side's picture.",
        }
    ),
]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class Sides(Request):
    """The pictures; one side may be left out."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["front"]}, {"required": ["back"]}]})

    front: SourceInput | None = None
    back: SourceInput | None = None

    @model_validator(mode="after")
    def _one_side_at_least(self) -> Self:
        if self.front is None and self.back is None:
            raise ValueError("give front, back or both")
        return self


def select_models(options: JobOptions, available: tuple[str, ...]) -> tuple[str, ...]:
    """The job's models, in the service's order.

    Raises:
        InvalidRequest: a model is named twice or is not one of `available`.
    """
    if options.models is None:
        return available
    unknown = [name for name in options.models if name not in available]
    if unknown:
        raise InvalidRequest(f"options.models: {unknown[0]!r} is not one of {', '.join(available)}")
    if len(set(options.models)) < len(options.models):
        raise InvalidRequest("options.models: name each model once")
    return tuple(name for name in available if name in options.models)


class ProcessRequest(Request):
    """One design to cut out."""

    id: ClientId
    output: Sides
    options: JobOptions = Field(default_factory=JobOptions)


class Links(BaseModel):
    """Addresses that belong to a job; `outputs` has an entry for each finished cell."""

    self: str
    events: str = Field(description="GET: what happens to it, as server-sent events")
    cancel: str = Field(description="POST: end it")
    retry: str = Field(description="POST: a new job for what it did not deliver")
    outputs: dict[str, str]


class Progress(BaseModel):
    """Cells that are finished (well or not), of all cells."""

    done: int
    total: int


class JobSummary(BaseModel):
    """A job in a listing."""

    job_id: str
    id: int | str
    status: JobStatus
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    deadline: datetime | None = Field(description="It expires when it is not done by then (Cancel-After)")
    retry_of: str | None = Field(description="The job that this one is a retry of")
    progress: Progress
    links: Links


class JobList(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[JobSummary]
    next_cursor: str | None = Field(description="Send it as ?cursor= for the next page; null: there are no more")


class JobEnvelope(JobSummary):
    """How a job stands. `result` is the body of a 200 from POST /process, once there is one."""

    queue_position: int | None = Field(description="1 is the next; null when the job is not queued")
    eta_seconds: float | None = Field(
        description="Seconds until a queued job is likely done, from measured times; null until there are any"
    )
    cells: dict[str, CellRecord]
    result: dict[str, Any] | None
    error: dict[str, Any] | None


class ProcessReply(BaseModel):
    """The result: one address per cell (`front_rmbg`, `back_birefnet`, ...), null where that cell failed."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"type": ["string", "null"]}})

    id: int | str
    processing_time_seconds: float
    job_id: str
    status: Literal["succeeded", "partial"]
    cells: dict[str, CellRecord]
    timings: dict[str, Any]
    sides: dict[str, Any] = Field(description="Per side: how far the models agree, which one is recommended and why")
    contact_sheet: str | None = Field(None, description="Address of a page with all proofs, when proofs were asked for")


class Problem(BaseModel):
    """An error, as RFC 9457 problem details."""

    type: str = Field(description="Reference to the description of this code in /docs")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable identifier; never changes its meaning")
    request_id: str
    job_id: str | None = Field(None, description="The job, when one was made")
    cells: dict[str, CellRecord] | None = Field(None, description="Its cells, when one was made")


class ModelHealth(BaseModel):
    """One model, as the worker that is furthest with it reports it; `absent` when no worker does."""

    status: Literal["absent", "loading", "ready", "failed"]
    device: str | None = None
    dtype: str | None = None
    profile: str | None = None
    licence: str | None = None
    error: str | None = None


class WorkerHealth(BaseModel):
    """One live worker."""

    name: str
    status: str
    device: str | None = None
    started_at: str | None = None
    seen_at: str | None = None


class RedisHealth(BaseModel):
    status: Literal["ready", "unavailable"]


class QueueHealth(BaseModel):
    depth: int | None = Field(description="Jobs no worker has begun; null when Redis does not answer")


class HealthReport(BaseModel):
    """Whether jobs are being done, and what is missing if not."""

    status: Literal["ready", "not_ready"]
    version: str
    redis: RedisHealth
    queue: QueueHealth
    models: dict[str, ModelHealth]
    workers: list[WorkerHealth]


class Alive(BaseModel):
    status: Literal["alive", "ready"]


def to_invalid_request(exc: ValidationError) -> InvalidRequest:
    """One sentence per mistake, each naming its field; at most five, none long."""
    mistakes = [f"{_field(error['loc'])}: {_sentence(dict(error))}" for error in exc.errors(include_url=False)]
    more = f"; and {len(mistakes) - 5} more" if len(mistakes) > 5 else ""
    return InvalidRequest("; ".join(dict.fromkeys(mistakes[:5])) + more)


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:100] for part in location) or "body"


def _sentence(error: dict[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field"
    if error["type"] == "missing":
        return "is required"
    if error["type"] in ("model_type", "model_attributes_type"):
        return "must be an object"
    return str(error["msg"]).removeprefix("Value error, ")[:300]
