"""The pieces that openapi.json is made of: operations, replies, parameters, headers."""

from typing import Any

from openapi_pydantic import Header, MediaType, Operation, Parameter, Reference, RequestBody, Schema
from openapi_pydantic import Response as Reply
from openapi_pydantic.util import PydanticSchema
from pydantic import BaseModel

from shared.errors import AppError

HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "XRequestId": ("The request's id: yours when it was sane, else a new one", {"type": "string"}),
    "Location": ("Where to ask how the job stands: /jobs/{job_id}", {"type": "string", "format": "uri-reference"}),
    "PreferenceApplied": ("Which preferences were honoured (RFC 7240)", {"type": "string"}),
    "RetryAfter": ("Seconds to let pass before the next request", {"type": "integer", "minimum": 0}),
    "CacheControl": ("How long the reply may be kept", {"type": "string"}),
    "ETag": ("Version of the file, for If-None-Match and If-Range", {"type": "string"}),
    "ContentRange": ("Which bytes of the file these are", {"type": "string"}),
    "IdempotentReplayed": ("true: an earlier request with this Idempotency-Key made the job", {"const": "true"}),
}
_HEADER_NAMES = {
    "XRequestId": "X-Request-ID",
    "PreferenceApplied": "Preference-Applied",
    "RetryAfter": "Retry-After",
    "CacheControl": "Cache-Control",
    "ContentRange": "Content-Range",
    "IdempotentReplayed": "Idempotent-Replayed",
}
_ID_SCHEMA = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}


def operation(
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
    responses |= error_replies(errors, error_headers)
    responses["default"] = problem("Any other error: its `code` is the name of its status", [])
    for status, (code, text) in (plain_errors or {}).items():
        responses[str(status)] = problem(f"{text}: `{code}`", [code])
    return Operation(
        operationId=name,
        summary=summary,
        parameters=[
            *(parameters or []),
            parameter("header", "X-Request-ID", "Your own id of this request; one is made otherwise", _ID_SCHEMA),
        ],
        requestBody=body,
        responses=responses,
    )


def error_replies(errors: tuple[type[AppError], ...], headers: tuple[str, ...]) -> dict[str, Reply | Reference]:
    by_status: dict[int, list[type[AppError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {
        str(status): problem(
            "; ".join(f"{error.title}: `{error.code}`" for error in group),
            [error.code for error in group],
            *headers,
            *(["RetryAfter"] if status == 503 else []),
        )
        for status, group in sorted(by_status.items())
    }


def problem(text: str, codes: list[str], *headers: str) -> Reply:
    named = [{"type": "object", "properties": {"code": {"enum": codes}}}] if codes else []
    schema = {"allOf": [{"$ref": "#/components/schemas/Problem"}, *named]}
    media = MediaType(media_type_schema=Schema.model_validate(schema))
    return Reply(description=text, headers=header_refs(*headers), content={"application/problem+json": media})


def json_reply(text: str, model: type[BaseModel], *headers: str, example: dict[str, Any] | None = None) -> Reply:
    media = MediaType(media_type_schema=PydanticSchema(schema_class=model), example=example)
    return Reply(description=text, headers=header_refs(*headers), content={"application/json": media})


def text_route(name: str, summary: str, media_type: str, schema: dict[str, Any] | None = None) -> Operation:
    media = MediaType(media_type_schema=Schema.model_validate(schema or {"type": "string"}))
    return operation(
        name, summary, {200: Reply(description=summary, headers=header_refs(), content={media_type: media})}
    )


def header_refs(*names: str) -> dict[str, Header | Reference]:
    return {
        _HEADER_NAMES.get(name, name): Reference.model_validate({"$ref": f"#/components/headers/{name}"})
        for name in ("XRequestId", *names)
    }


def path_parameter(name: str, text: str, example: str) -> Parameter:
    return parameter("path", name, text, {"type": "string", "examples": [example]})


def parameter(place: str, name: str, text: str, schema: dict[str, Any]) -> Parameter:
    required = {"required": True} if place == "path" else {}
    return Parameter.model_validate({"in": place, "name": name, "description": text, "schema": schema, **required})
