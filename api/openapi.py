"""openapi.json (OpenAPI 3.1), made from the typed models; a test compares it with the app's routes."""

from openapi_pydantic import Components, Header, Info, MediaType, OpenAPI, Operation, PathItem, RequestBody, Schema
from openapi_pydantic import Response as Reply
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class

from api import examples
from api.openapi_jobs import ENDINGS, job_paths, once_parameters, wait_parameters
from api.openapi_parts import (
    HEADERS,
    error_replies,
    header_refs,
    json_reply,
    operation,
    path_parameter,
    text_route,
)
from api.schemas import Alive, HealthReport, JobEnvelope, Problem, ProcessReply, ProcessRequest
from shared import __version__
from shared.errors import (
    AppError,
    IdempotencyKeyReused,
    InternalError,
    InvalidJson,
    InvalidRequest,
    ModelsNotReady,
    NotFound,
    OutputExpired,
    OutputNotFound,
    QueueFull,
    RequestTooLarge,
    StoreUnavailable,
    UnsupportedMediaType,
)
from shared.jobs import SIDES, JobStatus, cell_names

_PROCESS_ERRORS: tuple[type[AppError], ...] = (
    InvalidJson,
    RequestTooLarge,
    UnsupportedMediaType,
    InvalidRequest,
    IdempotencyKeyReused,
    QueueFull,
    StoreUnavailable,
    *ENDINGS,
)


def build_openapi(models: tuple[str, ...]) -> OpenAPI:
    """The description of every route, for a service that runs these models."""
    document = OpenAPI(
        openapi="3.1.0",
        info=Info(
            title="Cutout service",
            version=__version__,
            description="Removes the background of print designs: each side through each model, as PNG with alpha.",
        ),
        paths={
            "/process": PathItem(post=_process(models)),
            **job_paths(),
            "/outputs/{name}": PathItem(get=_output()),
            "/health": PathItem(get=_health()),
            "/live": PathItem(
                get=operation("live", "Whether the process answers", {200: json_reply("It does", Alive)})
            ),
            "/ready": PathItem(get=_ready()),
            "/metrics": PathItem(get=text_route("metrics", "Metrics in Prometheus' text format", "text/plain")),
            "/openapi.json": PathItem(
                get=text_route("openapi", "This document", "application/json", {"type": "object"})
            ),
            "/docs": PathItem(get=text_route("docs", "This document as a page", "text/html")),
            "/": PathItem(get=text_route("review", "The review page", "text/html")),
            "/static/{name}": PathItem(get=_static()),
        },
        components=Components(
            headers={
                name: Header(description=text, param_schema=Schema.model_validate(schema))
                for name, (text, schema) in HEADERS.items()
            }
        ),
    )
    document = construct_open_api_with_schema_class(document, schema_classes=[Problem])
    _name_cells(document, models)
    return document


def _process(models: tuple[str, ...]) -> Operation:
    form = {
        "type": "object",
        "additionalProperties": False,
        "required": ["id"],
        "anyOf": [{"required": ["front"]}, {"required": ["back"]}],
        "properties": {
            "id": {"type": "string", "description": "A whole number is taken as an integer"},
            "front": {"type": "string", "format": "binary", "description": "Picture file, or an http(s) URL as text"},
            "back": {"type": "string", "format": "binary", "description": "Picture file, or an http(s) URL as text"},
            "options": {"type": "string", "description": f'JSON, for example {{"models": ["{models[0]}"]}}'},
        },
    }
    example = {"id": 123, "output": {side: f"https://example.com/{side}.png" for side in SIDES}}
    replayed = "IdempotentReplayed"
    accepted = json_reply(
        "Accepted; the job goes on",
        JobEnvelope,
        "Location",
        "PreferenceApplied",
        "RetryAfter",
        replayed,
        example=examples.envelope(JobStatus.QUEUED),
    )
    done = json_reply("The job has ended with at least one cutout", ProcessReply, "PreferenceApplied", replayed)
    return operation(
        "process",
        "Cut a design out of its background",
        {200: done, 202: accepted},
        errors=_PROCESS_ERRORS,
        parameters=[*wait_parameters(), *once_parameters()],
        body=RequestBody(
            required=True,
            content={
                "application/json": MediaType(
                    media_type_schema=PydanticSchema(schema_class=ProcessRequest), example=example
                ),
                "multipart/form-data": MediaType(media_type_schema=Schema.model_validate(form)),
            },
        ),
        error_headers=("PreferenceApplied", replayed),
    )


def _output() -> Operation:
    file = {"image/png": MediaType(media_type_schema=Schema.model_validate({"type": "string", "format": "binary"}))}
    return operation(
        "output",
        "A result file",
        {
            200: Reply(description="The file", headers=header_refs("CacheControl", "ETag"), content=file),
            206: Reply(description="The part asked for by Range", headers=header_refs("ContentRange"), content=file),
            304: Reply(description="The client's copy is current", headers=header_refs("CacheControl", "ETag")),
        },
        errors=(OutputNotFound, OutputExpired, InternalError),
        parameters=[path_parameter("name", "As in a job's addresses", "design_123_4f0c7d3be0a94f1c_front_rmbg.png")],
        plain_errors={416: ("requested_range_not_satisfiable", "Range lies outside the file")},
    )


def _health() -> Operation:
    return operation(
        "health",
        "What works: Redis, the queue, and each model",
        {200: json_reply("A worker has all models ready", HealthReport),
         503: json_reply("None has, or Redis does not answer", HealthReport, "RetryAfter")},
    )  # fmt: skip


def _ready() -> Operation:
    return operation(
        "ready",
        "Whether a job sent now would be done",
        {200: json_reply("It would", Alive)},
        errors=(ModelsNotReady, StoreUnavailable),
    )


def _static() -> Operation:
    operation = text_route("static", "A file of the pages", "*/*")
    operation.parameters = [*(operation.parameters or []), path_parameter("name", "A file of ours", "app.js")]
    operation.responses = {**(operation.responses or {}), **error_replies((NotFound,), ())}
    return operation


def _name_cells(document: OpenAPI, models: tuple[str, ...]) -> None:
    """Spell out the reply's flat keys, which depend on the models this service runs."""
    schemas = document.components.schemas if document.components else None
    reply = schemas["ProcessReply"] if schemas else None
    if isinstance(reply, Schema) and reply.properties is not None:
        for name in cell_names(SIDES, models):
            reply.properties[name] = Schema.model_validate({"type": ["string", "null"], "format": "uri"})
