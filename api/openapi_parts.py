"""The pieces that openapi.py puts together: operations, replies, headers, problems with their examples."""

from typing import Any

from openapi_pydantic import Example, Header, Link, MediaType, Operation, Parameter, Reference, RequestBody, Schema
from openapi_pydantic import Response as Reply
from openapi_pydantic.util import PydanticSchema
from pydantic import BaseModel

from api.error_reference import FROM_FLASK, WHEN
from shared.errors import AppError, InternalError, RateLimited, Unauthorized

#: component name -> (the header's name, what it says, schema, example)
HEADERS: dict[str, tuple[str, str, dict[str, Any], str | int]] = {
    "XRequestId": (
        "X-Request-ID",
        "The request's id: yours when it was sane, else a new one",
        {"type": "string"},
        "3f0a6c1e8b0d4c2f9a7e5d3b1c0f8e6a",
    ),
    "Location": (
        "Location",
        "Where to ask how the job stands",
        {"type": "string", "format": "uri-reference"},
        "/jobs/4f0c2b9d8e7a4c1b9f3d5e6a7b8c9d0e",
    ),
    "PreferenceApplied": (
        "Preference-Applied",
        "Which preferences were honoured (RFC 7240)",
        {"type": "string"},
        "respond-async",
    ),
    "RetryAfter": ("Retry-After", "Seconds to let pass before the next request", {"type": "integer", "minimum": 0}, 5),
    "CacheControl": ("Cache-Control", "How long the reply may be kept", {"type": "string"}, "no-store"),
    "ETag": (
        "ETag",
        "Version of the file, for If-None-Match and If-Range",
        {"type": "string"},
        '"1764000000.0-900211-7"',
    ),
    "ContentRange": (
        "Content-Range",
        "Which bytes of the file these are; with 416, how many it has",
        {"type": "string"},
        "bytes 0-99/900211",
    ),
    "AcceptRanges": ("Accept-Ranges", "Parts of the file can be asked for by Range", {"type": "string"}, "bytes"),
    "LastModified": (
        "Last-Modified",
        "When the file was written, for If-Modified-Since",
        {"type": "string"},
        "Tue, 24 Nov 2026 10:00:01 GMT",
    ),
    "ContentDisposition": (
        "Content-Disposition",
        "The file's name, should it be saved",
        {"type": "string"},
        "inline; filename=design_123_4f0c2b9d8e7a4c1b9f3d5e6a7b8c9d0e_front_rmbg.png",
    ),
    "XAccelBuffering": ("X-Accel-Buffering", "no: a proxy must pass events on at once", {"const": "no"}, "no"),
    "IdempotentReplayed": (
        "Idempotent-Replayed",
        "true: an earlier request with this Idempotency-Key made the job",
        {"const": "true"},
        "true",
    ),
    "WWWAuthenticate": ("WWW-Authenticate", "How to send a key", {"type": "string"}, 'Bearer realm="cutout"'),
    "RateLimit": (
        "RateLimit",
        "What is left of each limit: r requests within t seconds; only where RATE_LIMIT is set, never on /live",
        {"type": "string"},
        '"minute";r=597;t=42',
    ),
    "RateLimitPolicy": (
        "RateLimit-Policy",
        "Each limit: q requests within w seconds; only where RATE_LIMIT is set",
        {"type": "string"},
        '"minute";q=600;w=60',
    ),
}
_REQUEST_ID = "Your own id of this request: 1-128 of A-Z a-z 0-9 . _ : -, or it is replaced by a new one"
#: Headers of every reply of a service that has limits.
_LIMIT_HEADERS = ("RateLimit", "RateLimitPolicy")
#: Headers that every problem of a status has.
_STATUS_HEADERS = {401: ("WWWAuthenticate",), 416: ("ContentRange",), 429: ("RetryAfter",), 503: ("RetryAfter",)}
#: Either of the two ways to send a key.
KEY: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]


def operation(
    name: str,
    summary: str,
    replies: dict[int, Reply],
    *,
    tag: str,
    text: str = "",
    errors: tuple[type[AppError], ...] = (),
    parameters: list[Parameter] | None = None,
    body: RequestBody | None = None,
    error_headers: tuple[str, ...] = (),
    plain_errors: dict[int, tuple[str, str]] | None = None,
    is_open: bool = False,
) -> Operation:
    """One route.

    Args:
        text: what is more to say than the summary.
        errors: what it may answer, besides what every route may.
        error_headers: headers that its problems have besides the usual ones.
        plain_errors: status -> (code, title) of errors that are not in our tree.
        is_open: it needs no key and is not counted.
    """
    usual = (InternalError,) if is_open else (Unauthorized, RateLimited, InternalError)
    all_errors = (*errors, *(error for error in usual if error not in errors))
    responses: dict[str, Reply | Reference] = {}
    for status, reply in replies.items():
        responses[str(status)] = reply.model_copy(
            update={"headers": {**(reply.headers or {}), **header_refs(*_LIMIT_HEADERS)}}
        )
    responses |= _error_replies(all_errors, (*error_headers, *_LIMIT_HEADERS))
    for status, (code, title) in (plain_errors or {}).items():
        names = (*_STATUS_HEADERS.get(status, ()), *_LIMIT_HEADERS)
        responses[str(status)] = _problem(f"{title}: `{code}`", {code: (status, title, WHEN[code])}, *names)
    described = {"description": text} if text else {}
    return Operation(
        operationId=name,
        summary=summary,
        tags=[tag],
        parameters=[
            *(parameters or []),
            parameter("header", "X-Request-ID", _REQUEST_ID, {"type": "string", "examples": ["order-123"]}),
        ],
        requestBody=body,
        responses=dict(sorted(responses.items())),
        security=[] if is_open else KEY,
        **described,
    )


def _error_replies(errors: tuple[type[AppError], ...], names: tuple[str, ...]) -> dict[str, Reply | Reference]:
    by_status: dict[int, list[type[AppError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {
        str(status): _problem(
            "; ".join(f"{error.title}: `{error.code}`" for error in group),
            {error.code: (status, error.title, WHEN.get(error.code, error.title)) for error in group},
            *names,
            *_STATUS_HEADERS.get(status, ()),
        )
        for status, group in by_status.items()
    }


def _problem(text: str, codes: dict[str, tuple[int, str, str]], *names: str) -> Reply:
    """A problem+json reply that may have these codes; each is an example."""
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Problem"},
            {"type": "object", "properties": {"code": {"enum": list(codes)}}},
        ]
    }
    examples: dict[str, Example | Reference] = {
        code: Example(summary=title, value=_problem_example(code, status, title, when))
        for code, (status, title, when) in codes.items()
    }
    media = MediaType(media_type_schema=Schema.model_validate(schema), examples=examples)
    return Reply(
        description=text, headers=header_refs("CacheControl", *names), content={"application/problem+json": media}
    )


def _problem_example(code: str, status: int, title: str, when: str) -> dict[str, Any]:
    return {
        "type": f"/docs#{code}",
        "title": title,
        "status": status,
        "detail": when.replace("`", ""),
        "code": code,
        "request_id": HEADERS["XRequestId"][3],
    }


def json_reply(text: str, model: type[BaseModel], *names: str, example: Any) -> Reply:
    media = MediaType(media_type_schema=PydanticSchema(schema_class=model), example=example)
    return Reply(description=text, headers=header_refs("CacheControl", *names), content={"application/json": media})


def with_job_links(reply: Reply) -> Reply:
    """A reply about a job, which says where its job_id leads."""
    links: dict[str, Link | Reference] = {
        name: Link(operationId=name, parameters={"job_id": "$response.body#/job_id"}, description=text)
        for name, text in (
            ("job", "How it stands"),
            ("events", "What happens to it"),
            ("cancel", "End it"),
            ("retry", "Try again what failed"),
            ("delete", "Remove it"),
        )
    }
    return reply.model_copy(update={"links": links})


def file_replies(text: str, *media_types: str) -> dict[int, Reply]:
    """A file, whole, in part, or not again."""
    binary = Schema.model_validate({"type": "string", "format": "binary"})
    content = {media_type: MediaType(media_type_schema=binary) for media_type in media_types}
    same = header_refs("CacheControl", "ETag", "AcceptRanges", "LastModified", "ContentDisposition")
    return {
        200: Reply(description=text, headers=same, content=content),
        206: Reply(
            description="The part asked for by Range", headers={**same, **header_refs("ContentRange")}, content=content
        ),
        304: Reply(description="The client's copy is current", headers=same),
    }


#: What a file route answers to a Range outside of the file.
BAD_RANGE = {416: ("requested_range_not_satisfiable", FROM_FLASK["requested_range_not_satisfiable"][1])}


def text_reply(text: str, media_type: str, schema: dict[str, Any]) -> Reply:
    media = MediaType(media_type_schema=Schema.model_validate(schema))
    return Reply(description=text, headers=header_refs(), content={media_type: media})


def header_refs(*names: str) -> dict[str, Header | Reference]:
    """References to these headers, and to the one that every reply has."""
    return {
        HEADERS[name][0]: Reference.model_validate({"$ref": f"#/components/headers/{name}"})
        for name in ("XRequestId", *names)
    }


def header_components() -> dict[str, Header | Reference]:
    return {
        name: Header(description=text, param_schema=Schema.model_validate(schema), example=example)
        for name, (_, text, schema, example) in HEADERS.items()
    }


def path_parameter(name: str, text: str, example: str, pattern: str = "") -> Parameter:
    schema = {"type": "string", "examples": [example], **({"pattern": f"^{pattern}$"} if pattern else {})}
    return parameter("path", name, text, schema)


def parameter(place: str, name: str, text: str, schema: dict[str, Any]) -> Parameter:
    """A parameter; `schema` has an example or a default, which says how it looks."""
    required = {"required": True} if place == "path" else {}
    return Parameter.model_validate({"in": place, "name": name, "description": text, "schema": schema, **required})
