"""openapi.json (OpenAPI 3.1), made from the typed models; a test compares it with the app's routes."""

from typing import Any

from openapi_pydantic import (
    Components,
    Encoding,
    Example,
    Info,
    MediaType,
    OpenAPI,
    Operation,
    PathItem,
    RequestBody,
    Schema,
    SecurityScheme,
    Tag,
)
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import BaseModel

from api import examples
from api.error_reference import FROM_FLASK, WHEN
from api.errors import error_classes
from api.openapi_jobs import ENDINGS, fresh_parameter, job_paths, once_parameter, wait_parameters
from api.openapi_parts import (
    BAD_RANGE,
    KEY,
    file_replies,
    header_components,
    json_reply,
    operation,
    parameter,
    path_parameter,
    text_reply,
    with_job_links,
)
from api.report_schemas import ErrorRecord, Preflight, PrintReport, SideReport
from api.schemas import Alive, HealthReport, JobEnvelope, Problem, ProcessReply, ProcessRequest
from shared import __version__
from shared.errors import (
    AppError,
    IdempotencyKeyReused,
    InvalidJson,
    InvalidRequest,
    ModelsNotReady,
    NotFound,
    OutputExpired,
    OutputNotFound,
    OutputUrlExpired,
    OutputUrlInvalid,
    QueueFull,
    RequestTooLarge,
    StoreUnavailable,
    UnsupportedMediaType,
)
from shared.jobs import SIDES, JobStatus, cell_names

_ABOUT = """Removes the background of print designs: each side through each model, as PNG with alpha.

Send a design to `POST /process` and wait for the result, or let it answer at once and ask `GET /jobs/{job_id}`, or have
a webhook tell you. Errors are problem details (RFC 9457) whose `code` never changes its meaning.

Every reply also has `X-Content-Type-Options: nosniff`, a `Referrer-Policy` and a `Content-Security-Policy`."""
_TAGS = {
    "Jobs": "Cut designs out",
    "Outputs": "The files that were made",
    "Operation": "For operators and orchestrators",
    "Pages": "For people",
}
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
#: Fields that are plain objects in our code: schema -> field -> what is in them, or in each of their entries.
_SHAPES: dict[str, dict[str, tuple[type[BaseModel], bool]]] = {
    "CellRecord": {
        "error": (ErrorRecord, False),
        "preflight": (Preflight, False),
        "print": (PrintReport, False),
    },
    "JobEnvelope": {"error": (ErrorRecord, False), "result": (ProcessReply, False)},
    "ProcessReply": {"sides": (SideReport, True)},
}


def build_openapi(models: tuple[str, ...], *, has_keys: bool = False) -> OpenAPI:
    """The description of every route, for a service that runs these models and does or does not ask for keys."""
    document = OpenAPI(
        openapi="3.1.0",
        info=Info(title="Cutout service", version=__version__, description=_ABOUT),
        tags=[Tag(name=name, description=text) for name, text in _TAGS.items()],
        paths={
            "/process": PathItem(post=_process(models)),
            **job_paths(models),
            "/outputs/{name}": PathItem(get=_output()),
            "/health": PathItem(get=_health(models)),
            "/live": PathItem(get=_live()),
            "/ready": PathItem(get=_ready()),
            "/metrics": PathItem(get=_metrics()),
            "/openapi.json": PathItem(get=_document()),
            "/docs": PathItem(get=_page("docs", "This document as a page")),
            "/": PathItem(get=_page("review", "The review page")),
            "/static/{name}": PathItem(get=_static()),
        },
        components=Components(
            headers=header_components(),
            securitySchemes={
                "bearer": SecurityScheme(type="http", scheme="bearer", description="`Authorization: Bearer <key>`"),
                "header": SecurityScheme.model_validate(
                    {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "`X-API-Key: <key>`"}
                ),
            },
        ),
    )
    if not has_keys:
        _make_keys_optional(document)
    document = construct_open_api_with_schema_class(
        document, schema_classes=[Problem, ErrorRecord, Preflight, PrintReport, SideReport]
    )
    _name_cells(document, models)
    _name_shapes(document)
    return document.model_copy(update={"x-error-codes": _error_codes()})


def _process(models: tuple[str, ...]) -> Operation:
    picture = {"type": "string", "format": "binary", "description": "Picture file, or an http(s) URL as text"}
    form = {
        "type": "object",
        "additionalProperties": False,
        "required": ["id"],
        "anyOf": [{"required": ["front"]}, {"required": ["back"]}],
        "properties": {
            "id": {
                "type": "string",
                "pattern": "^[A-Za-z0-9_-]{1,64}$",
                "description": "A whole number is taken as an integer",
            },
            "front": picture,
            "back": picture,
            "options": {
                "$ref": "#/components/schemas/JobOptions",
                "description": f'As JSON text: {{"models": ["{models[0]}"]}}',
            },
        },
    }
    replayed = "IdempotentReplayed"
    done = json_reply(
        "The job has ended with at least one cutout",
        ProcessReply,
        *("PreferenceApplied", replayed),
        example=examples.result(cell_names(SIDES, models)),
    )
    accepted = json_reply(
        "Accepted; the job goes on",
        JobEnvelope,
        *("Location", "PreferenceApplied", "RetryAfter", replayed),
        example=examples.envelope(JobStatus.QUEUED),
    )
    return operation(
        "process",
        "Cut a design out of its background",
        {200: with_job_links(done), 202: with_job_links(accepted)},
        tag="Jobs",
        text="One job: a front, a back or both, each through every model. Waits for the result unless asked otherwise.",
        errors=_PROCESS_ERRORS,
        parameters=[*wait_parameters(), once_parameter(), fresh_parameter()],
        body=RequestBody(
            required=True,
            description="JSON with addresses, or a form with files; the same request either way",
            content={
                "application/json": MediaType(
                    media_type_schema=PydanticSchema(schema_class=ProcessRequest),
                    examples={
                        name: Example(summary=text, value=value) for name, (text, value) in examples.REQUESTS.items()
                    },
                ),
                "multipart/form-data": MediaType(
                    media_type_schema=Schema.model_validate(form),
                    encoding={"options": Encoding(contentType="application/json")},
                ),
            },
        ),
        error_headers=("PreferenceApplied", replayed),
    )


def _output() -> Operation:
    return operation(
        "output",
        "A result file",
        file_replies("The file", "image/png", "image/webp"),
        tag="Outputs",
        text="Take the whole address from a reply. It needs no key: its name cannot be guessed, and where the service "
        "has OUTPUT_URL_TTL it is signed and ends.",
        errors=(OutputUrlInvalid, OutputNotFound, OutputExpired, OutputUrlExpired),
        parameters=[
            path_parameter("name", "As in a job's addresses", examples.OUTPUT),
            parameter("query", "expires", "Of a signed address: until when it is good", _text("1790000000")),
            parameter("query", "signature", "Of a signed address: that it is ours", _text("kY0y5n3oQh1m")),
        ],
        plain_errors=BAD_RANGE,
        is_open=True,
    )


def _health(models: tuple[str, ...]) -> Operation:
    ready, loading = examples.health(models, "ready"), examples.health(models, "not_ready")
    found = operation(
        "health",
        "What works: Redis, the queue, and each model",
        {
            200: json_reply("A worker has all models ready", HealthReport, example=ready),
            503: json_reply("None has, or Redis does not answer", HealthReport, "RetryAfter", example=loading),
        },
        tag="Operation",
        text="Without a key, where the service has keys, it leaves out devices, workers and reasons.",
        is_open=True,
    )
    found.security = [{}, *KEY]
    return found


def _live() -> Operation:
    reply = json_reply("It does", Alive, example={"status": "alive"})
    return operation("live", "Whether the process answers", {200: reply}, tag="Operation", is_open=True)


def _ready() -> Operation:
    return operation(
        "ready",
        "Whether a job sent now would be done",
        {200: json_reply("It would", Alive, example={"status": "ready"})},
        tag="Operation",
        errors=(ModelsNotReady, StoreUnavailable),
        is_open=True,
    )


def _metrics() -> Operation:
    reply = text_reply("Counters, gauges and histograms", "text/plain", {"type": "string"})
    return operation("metrics", "Metrics in Prometheus' text format", {200: reply}, tag="Operation")


def _document() -> Operation:
    reply = text_reply("This document", "application/json", {"type": "object"})
    return operation("openapi", "This document", {200: reply}, tag="Pages", is_open=True)


def _page(name: str, summary: str) -> Operation:
    replies = file_replies(summary, "text/html")
    return operation(name, summary, replies, tag="Pages", plain_errors=BAD_RANGE, is_open=True)


def _static() -> Operation:
    return operation(
        "static",
        "A file of the pages",
        file_replies("The file", "text/css", "text/javascript", "image/svg+xml", "text/html"),
        tag="Pages",
        errors=(NotFound,),
        parameters=[path_parameter("name", "A file of ours", "style.css")],
        plain_errors=BAD_RANGE,
        is_open=True,
    )


def _text(example: str) -> dict[str, Any]:
    return {"type": "string", "examples": [example]}


def _error_codes() -> list[dict[str, Any]]:
    """Every code: what a problem's `type` leads to, on /docs."""
    known = error_classes()
    codes = []
    for code, when in WHEN.items():
        error = known.get(code)
        status, title = (error.status, error.title) if error else FROM_FLASK[code]
        again = error is not None and error.retryable
        codes.append({"code": code, "status": status, "title": title, "when": when, "retryable": again})
    return codes


# --- the whole document ---------------------------------------------------------------------------------------------
def _make_keys_optional(document: OpenAPI) -> None:
    """Of a service without keys: one may be sent, and means nothing."""
    for item in (document.paths or {}).values():
        for found in (item.get, item.post, item.delete):
            if found is not None and found.security:
                found.security = [{}, *(scheme for scheme in found.security if scheme)]


def _schema(document: OpenAPI, name: str) -> dict[str, Any]:
    """The properties of a named schema."""
    found = (document.components.schemas or {})[name] if document.components else None
    return found.properties if isinstance(found, Schema) and found.properties is not None else {}


def _name_cells(document: OpenAPI, models: tuple[str, ...]) -> None:
    """Spell out what depends on the models this service runs: their names, and the reply's flat keys."""
    options = _schema(document, "JobOptions")
    names = {"type": "array", "items": {"enum": list(models)}, "minItems": 1, "uniqueItems": True}
    options["models"] = Schema.model_validate(
        {"anyOf": [names, {"type": "null"}], "description": options["models"].description}
    )
    properties = _schema(document, "ProcessReply")
    for name in cell_names(SIDES, models):
        text = f"Address of the cutout of this side by this model; null where {name} failed or was not asked for"
        properties[name] = Schema.model_validate({"type": ["string", "null"], "format": "uri", "description": text})


def _name_shapes(document: OpenAPI) -> None:
    """Say what is in the fields that are plain objects to the API."""
    for name, fields in _SHAPES.items():
        properties = _schema(document, name)
        for field, (model, is_map) in fields.items():
            pointer = {"$ref": f"#/components/schemas/{model.__name__}"}
            shape = (
                {"type": "object", "additionalProperties": pointer}
                if is_map
                else {"anyOf": [pointer, {"type": "null"}]}
            )
            text = properties[field].description
            properties[field] = Schema.model_validate({**shape, "description": text})
