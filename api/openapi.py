"""openapi.json (OpenAPI 3.1), made from the typed models; a test compares it with the app's routes."""

from typing import Any

from openapi_pydantic import (
    Components,
    Header,
    Info,
    MediaType,
    OpenAPI,
    Operation,
    Parameter,
    PathItem,
    Reference,
    RequestBody,
    Schema,
)
from openapi_pydantic import Response as Reply
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import BaseModel

from api.schemas import Alive, HealthReport, JobEnvelope, Problem, ProcessReply, ProcessRequest
from shared import __version__
from shared.errors import (
    AppError,
    InferenceFailed,
    InternalError,
    InvalidJson,
    InvalidRequest,
    JobNotFound,
    ModelsNotReady,
    NotFound,
    OutOfDeviceMemory,
    OutputExpired,
    OutputNotFound,
    OutputNotWritten,
    RequestTooLarge,
    SourceAddressForbidden,
    SourceNotAnImage,
    SourceTimeout,
    SourceTooLarge,
    SourceUnreachable,
    StoreUnavailable,
    UnsupportedMediaType,
)
from shared.jobs import SIDES, cell_names

_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "XRequestId": ("The request's id: yours when it was sane, else a new one", {"type": "string"}),
    "Location": ("Where to ask how the job stands: /jobs/{job_id}", {"type": "string", "format": "uri-reference"}),
    "PreferenceApplied": ("Which preferences were honoured (RFC 7240)", {"type": "string"}),
    "RetryAfter": ("Seconds to let pass before the next request", {"type": "integer", "minimum": 0}),
    "CacheControl": ("How long the reply may be kept", {"type": "string"}),
    "ETag": ("Version of the file, for If-None-Match and If-Range", {"type": "string"}),
    "ContentRange": ("Which bytes of the file these are", {"type": "string"}),
}
_HEADER_NAMES = {
    "XRequestId": "X-Request-ID",
    "PreferenceApplied": "Preference-Applied",
    "RetryAfter": "Retry-After",
    "CacheControl": "Cache-Control",
    "ContentRange": "Content-Range",
}
_ID_SCHEMA = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
_PROCESS_ERRORS: tuple[type[AppError], ...] = (
    InvalidJson,
    RequestTooLarge,
    UnsupportedMediaType,
    InvalidRequest,
    SourceUnreachable,
    SourceTimeout,
    SourceTooLarge,
    SourceNotAnImage,
    SourceAddressForbidden,
    InferenceFailed,
    OutOfDeviceMemory,
    OutputNotWritten,
    InternalError,
    StoreUnavailable,
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
            "/jobs/{job_id}": PathItem(get=_job()),
            "/outputs/{name}": PathItem(get=_output()),
            "/health": PathItem(get=_health()),
            "/live": PathItem(get=_operation("live", "Whether the process answers", {200: _json("It does", Alive)})),
            "/ready": PathItem(get=_ready()),
            "/metrics": PathItem(get=_text("metrics", "Metrics in Prometheus' text format", "text/plain")),
            "/openapi.json": PathItem(get=_text("openapi", "This document", "application/json", {"type": "object"})),
            "/docs": PathItem(get=_text("docs", "This document as a page", "text/html")),
            "/": PathItem(get=_text("review", "The review page", "text/html")),
            "/static/{name}": PathItem(get=_static()),
        },
        components=Components(
            headers={
                name: Header(description=text, param_schema=Schema.model_validate(schema))
                for name, (text, schema) in _HEADERS.items()
            }
        ),
    )
    document = construct_open_api_with_schema_class(document, schema_classes=[Problem])
    _name_cells(document, models)
    return document


def _process(models: tuple[str, ...]) -> Operation:
    prefer = _parameter(
        "header",
        "Prefer",
        "respond-async: a 202 at once. wait=N: wait at most N seconds (RFC 7240). The default is to wait.",
        {"type": "string", "examples": ["respond-async", "wait=10"]},
    )
    wait = _parameter(
        "query",
        "wait",
        "false is Prefer: respond-async, a number is Prefer: wait=N; wins over the header",
        {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0}]},
    )
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
    accepted = _json("Accepted; the job goes on", JobEnvelope, "Location", "PreferenceApplied", "RetryAfter")
    return _operation(
        "process",
        "Cut a design out of its background",
        {200: _json("The job has ended with at least one cutout", ProcessReply, "PreferenceApplied"), 202: accepted},
        errors=_PROCESS_ERRORS,
        parameters=[prefer, wait],
        body=RequestBody(
            required=True,
            content={
                "application/json": MediaType(
                    media_type_schema=PydanticSchema(schema_class=ProcessRequest), example=example
                ),
                "multipart/form-data": MediaType(media_type_schema=Schema.model_validate(form)),
            },
        ),
        error_headers=("PreferenceApplied",),
    )


def _job() -> Operation:
    return _operation(
        "job",
        "How a job stands",
        {200: _json("The job", JobEnvelope)},
        errors=(JobNotFound, InternalError, StoreUnavailable),
        parameters=[_path("job_id", "From the 202 or the result")],
    )


def _output() -> Operation:
    file = {"image/png": MediaType(media_type_schema=Schema.model_validate({"type": "string", "format": "binary"}))}
    return _operation(
        "output",
        "A result file",
        {
            200: Reply(description="The file", headers=_headers("CacheControl", "ETag"), content=file),
            206: Reply(description="The part asked for by Range", headers=_headers("ContentRange"), content=file),
            304: Reply(description="The client's copy is current", headers=_headers("CacheControl", "ETag")),
        },
        errors=(OutputNotFound, OutputExpired, InternalError),
        parameters=[_path("name", "design_{id}_{job_id}_{side}_{model}.png")],
        plain_errors={416: ("requested_range_not_satisfiable", "Range lies outside the file")},
    )


def _health() -> Operation:
    return _operation(
        "health",
        "What works: Redis, the queue, and each model",
        {200: _json("A worker has all models ready", HealthReport),
         503: _json("None has, or Redis does not answer", HealthReport, "RetryAfter")},
    )  # fmt: skip


def _ready() -> Operation:
    return _operation(
        "ready",
        "Whether a job sent now would be done",
        {200: _json("It would", Alive)},
        errors=(ModelsNotReady, StoreUnavailable),
    )


def _static() -> Operation:
    operation = _text("static", "A file of the pages", "*/*")
    operation.parameters = [*(operation.parameters or []), _path("name", "app.js, style.css, ...")]
    operation.responses = {**(operation.responses or {}), **_error_replies((NotFound,), ())}
    return operation


# --- parts ------------------------------------------------------------------------------------------------------------
def _operation(
    name: str,
    summary: str,
    replies: dict[int, Reply],
    *,
    errors: tuple[type[AppError], ...] = (),
    parameters: list[Parameter] | None = None,
    body: RequestBody | None = None,
    error_headers: tuple[str, ...] = (),
    plain_errors: dict[int, tuple[str, str]] | None = None,
) -> Operation:
    responses: dict[str, Reply | Reference] = {str(status): reply for status, reply in replies.items()}
    responses |= _error_replies(errors, error_headers)
    responses["default"] = _problem("Any other error: its `code` is the name of its status", [])
    for status, (code, text) in (plain_errors or {}).items():
        responses[str(status)] = _problem(f"{text}: `{code}`", [code])
    return Operation(
        operationId=name,
        summary=summary,
        parameters=[
            *(parameters or []),
            _parameter("header", "X-Request-ID", "Your own id of this request; one is made otherwise", _ID_SCHEMA),
        ],
        requestBody=body,
        responses=responses,
    )


def _error_replies(errors: tuple[type[AppError], ...], headers: tuple[str, ...]) -> dict[str, Reply | Reference]:
    by_status: dict[int, list[type[AppError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {
        str(status): _problem(
            "; ".join(f"{error.title}: `{error.code}`" for error in group),
            [error.code for error in group],
            *headers,
            *(["RetryAfter"] if status == 503 else []),
        )
        for status, group in sorted(by_status.items())
    }


def _problem(text: str, codes: list[str], *headers: str) -> Reply:
    named = [{"type": "object", "properties": {"code": {"enum": codes}}}] if codes else []
    schema = {"allOf": [{"$ref": "#/components/schemas/Problem"}, *named]}
    media = MediaType(media_type_schema=Schema.model_validate(schema))
    return Reply(description=text, headers=_headers(*headers), content={"application/problem+json": media})


def _json(text: str, model: type[BaseModel], *headers: str) -> Reply:
    media = MediaType(media_type_schema=PydanticSchema(schema_class=model))
    return Reply(description=text, headers=_headers(*headers), content={"application/json": media})


def _text(name: str, summary: str, media_type: str, schema: dict[str, Any] | None = None) -> Operation:
    media = MediaType(media_type_schema=Schema.model_validate(schema or {"type": "string"}))
    return _operation(name, summary, {200: Reply(description=summary, headers=_headers(), content={media_type: media})})


def _headers(*names: str) -> dict[str, Header | Reference]:
    return {
        _HEADER_NAMES.get(name, name): Reference.model_validate({"$ref": f"#/components/headers/{name}"})
        for name in ("XRequestId", *names)
    }


def _path(name: str, text: str) -> Parameter:
    return _parameter("path", name, text, {"type": "string"})


def _parameter(place: str, name: str, text: str, schema: dict[str, Any]) -> Parameter:
    required = {"required": True} if place == "path" else {}
    return Parameter.model_validate({"in": place, "name": name, "description": text, "schema": schema, **required})


def _name_cells(document: OpenAPI, models: tuple[str, ...]) -> None:
    """Spell out the reply's flat keys, which depend on the models this service runs."""
    schemas = document.components.schemas if document.components else None
    reply = schemas["ProcessReply"] if schemas else None
    if isinstance(reply, Schema) and reply.properties is not None:
        for name in cell_names(SIDES, models):
            reply.properties[name] = Schema.model_validate({"type": ["string", "null"], "format": "uri"})
