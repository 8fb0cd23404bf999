"""Typed requests and replies: every check of outside input that needs no pixels, and the source of openapi.json."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

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
from shared.jobs import CellRecord, ExtractionReport, JobStatus, TokenUse
from shared.options import JobOptions
from shared.store import WebhookReport
from shared.urls import check_url

#: Largest integer that every JSON reader keeps exactly.
ID_LIMIT = 2**53

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
    return check_url(value)


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

    front: SourceInput | None = Field(None, description="The front: an http(s) URL or a data: URI of its picture")
    back: SourceInput | None = Field(None, description="The back, likewise")

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
    output: Sides = Field(description="The pictures to cut out")
    options: JobOptions = Field(default_factory=JobOptions, description="Everything beyond the plain cutout")


class Links(BaseModel):
    """Addresses that belong to a job; `outputs` has an entry for each finished cell."""

    self: str = Field(description="GET: the job")
    events: str = Field(description="GET: what happens to it, as server-sent events")
    cancel: str = Field(description="POST: end it")
    retry: str = Field(description="POST: a new job for what it did not deliver")
    outputs: dict[str, str] = Field(description="GET: the result of each finished cell, by its name")


class Progress(BaseModel):
    """Cells that are finished (well or not), of all cells."""

    done: int = Field(description="Finished cells, well or not")
    total: int = Field(description="All cells of the job")


class JobSummary(BaseModel):
    """A job in a listing."""

    job_id: str = Field(description="Our id of the job")
    id: int | str = Field(description="Your id of the design, as it was sent")
    status: JobStatus = Field(description="Its state; succeeded, partial, failed, canceled and expired are final")
    created_at: datetime = Field(description="When it was accepted, UTC")
    started_at: datetime | None = Field(description="When a worker began it, UTC")
    completed_at: datetime | None = Field(description="When it ended, UTC")
    deadline: datetime | None = Field(description="It expires when it is not done by then (Cancel-After)")
    outputs_removed_at: datetime | None = Field(
        description="When its outputs were removed (OUTPUT_TTL, OUTPUT_MAX_BYTES), UTC; they answer 410 since"
    )
    retry_of: str | None = Field(description="The job that this one is a retry of")
    progress: Progress = Field(description="How many of its cells are finished")
    links: Links = Field(description="Addresses that belong to the job")


class JobList(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[JobSummary] = Field(description="The jobs of this page")
    next_cursor: str | None = Field(description="Send it as ?cursor= for the next page; null: there are no more")


class JobEnvelope(JobSummary):
    """How a job stands. `result` is the body of a 200 from POST /process, once there is one."""

    queue_position: int | None = Field(description="1 is the next; null when the job is not queued")
    eta_seconds: float | None = Field(
        description="Seconds until a queued job is likely done, from measured times; null until there are any"
    )
    cells: dict[str, CellRecord] = Field(description="Every cell by its name: front_rmbg, back_birefnet, ...")
    extraction: dict[str, ExtractionReport] = Field(description="Per side, once decided: what became of extraction")
    tokens: TokenUse | None = Field(description="What the job used of Gemini; null when it was not asked")
    result: dict[str, Any] | None = Field(description="The body of a 200 from POST /process, once there is one")
    error: dict[str, Any] | None = Field(description="Why the whole job has failed")
    webhook: WebhookReport | None = Field(None, description="Where events are told, and how each delivery went")


class ProcessReply(BaseModel):
    """The result: one address per cell (`front_rmbg`, `back_birefnet`, ...), null where that cell failed."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"type": ["string", "null"]}})

    id: int | str = Field(description="Your id of the design, as it was sent")
    processing_time_seconds: float = Field(description="From the request to the result (s)")
    job_id: str = Field(description="Our id of the job")
    status: Literal["succeeded", "partial"] = Field(description="partial: not every cell could be delivered")
    cells: dict[str, CellRecord] = Field(description="Every cell by its name: front_rmbg, back_birefnet, ...")
    timings: dict[str, Any] = Field(description="Seconds of each step: queue_seconds, front_rmbg_seconds, ...")
    sides: dict[str, Any] = Field(
        description="Per side: how far the models agree, which one is recommended and why, whether a person should "
        "look (`needs_review`, `review_reason`); `extraction`: what became of the design's extraction (an "
        "ExtractionReport)"
    )
    tokens: TokenUse | None = Field(None, description="What the job used of Gemini, when it was asked")
    contact_sheet: str | None = Field(None, description="Address of a page with all proofs, when proofs were asked for")
    outputs_removed_at: datetime | None = Field(
        None, description="Of an earlier job's result (Idempotency-Key): when its outputs were removed, UTC"
    )


class Problem(BaseModel):
    """An error, as RFC 9457 problem details."""

    type: str = Field(description="Reference to the description of this code in /docs")
    title: str = Field(description="The kind of error, the same for every error of this code")
    status: int = Field(description="The HTTP status, once more")
    detail: str = Field(description="What is wrong with this request, for a person")
    code: str = Field(description="Stable identifier; never changes its meaning")
    request_id: str = Field(description="Names this request in our log, as X-Request-ID does")
    job_id: str | None = Field(None, description="The job, when one was made")
    cells: dict[str, CellRecord] | None = Field(None, description="Its cells, when one was made")
    extraction: dict[str, ExtractionReport] | None = Field(None, description="Its extractions, when one was made")


class ModelHealth(BaseModel):
    """One model, as the worker that is furthest with it reports it; `absent` when no worker does."""

    status: Literal["absent", "loading", "ready", "failed"] = Field(description="ready: it takes work")
    device: str | None = Field(None, description="Where it runs: cpu, cuda:0")
    dtype: str | None = Field(None, description="What it computes in: float16, float32")
    profile: str | None = Field(None, description="Which weights: full (published) or starter (in git)")
    licence: str | None = Field(None, description="Licence of the weights")
    error: str | None = Field(None, description="Why it is not ready")


class WorkerMemory(BaseModel):
    """Bytes that a worker holds now and at most since its start; null where it has no device of its own."""

    resident_bytes: int | None = Field(None, description="Of the host's memory, now")
    resident_peak_bytes: int | None = Field(None, description="Of the host's memory, at most")
    device_bytes: int | None = Field(None, description="Of the device's memory, now")
    device_peak_bytes: int | None = Field(None, description="Of the device's memory, at most")


class WorkerHealth(BaseModel):
    """One live worker."""

    name: str = Field(description="WORKER_NAME of its settings")
    status: str = Field(description="loading, ready, draining (stopping) or failed")
    device: str | None = Field(None, description="Where it computes")
    extraction: bool = Field(False, description="Whether it can extract designs (GEMINI_API_KEY is set)")
    started_at: str | None = Field(None, description="When it started, UTC")
    seen_at: str | None = Field(None, description="Its last report, UTC")
    memory: WorkerMemory | None = Field(None, description="What it holds; null until its models are loaded")
    device_waiting: int | None = Field(None, description="Pictures that wait for its device")


class RedisHealth(BaseModel):
    """Redis, as the API finds it."""

    status: Literal["ready", "unavailable"] = Field(description="Whether Redis answers")


class QueueHealth(BaseModel):
    """Jobs that wait."""

    depth: int | None = Field(description="Jobs no worker has begun; null when Redis does not answer")


class HealthReport(BaseModel):
    """Whether jobs are being done, and what is missing if not."""

    status: Literal["ready", "not_ready"] = Field(description="ready: a worker has all models ready")
    version: str = Field(description="Version of the service")
    redis: RedisHealth = Field(description="The queue's and the records' place")
    queue: QueueHealth = Field(description="What waits")
    models: dict[str, ModelHealth] = Field(description="Every model the service runs, by name")
    workers: list[WorkerHealth] = Field(description="Workers that report; empty for callers without a key")


class Alive(BaseModel):
    """The answer to a probe."""

    status: Literal["alive", "ready"] = Field(description="That it is so; otherwise there is an error")


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
