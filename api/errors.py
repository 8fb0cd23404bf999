"""The one place where an error becomes a status and a problem+json body (RFC 9457)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import structlog
from flask import Flask, Response, g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from api.service import get_service
from shared.errors import (
    AppError,
    InternalError,
    InvalidJson,
    ModelsNotReady,
    NotFound,
    RequestTooLarge,
    Unavailable,
)

RETRY_AFTER_S = 5

log = structlog.get_logger(__name__)


def error_classes() -> dict[str, type[AppError]]:
    """Every error of the tree by its code; parents that stand for several are not codes a client meets."""

    def leaves(parent: type[AppError]) -> Iterator[type[AppError]]:
        for child in parent.__subclasses__():
            yield child
            yield from leaves(child)

    return {error.code: error for error in leaves(AppError)}


def problem(
    code: str,
    status: int,
    title: str,
    detail: str,
    members: Mapping[str, Any] | None = None,
    retry_after_s: int | None = None,
) -> Response:
    """A problem+json reply; 503 says when to try again."""
    body = {
        "type": f"/docs#{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": g.get("request_id", ""),
        **(members or {}),
    }
    reply = Response(json.dumps(body), status, content_type="application/problem+json")
    reply.headers["Cache-Control"] = "no-store"
    if status == 503:
        reply.headers["Retry-After"] = str(retry_after_s or RETRY_AFTER_S)
    return reply


def error_problem(error: AppError) -> Response:
    return problem(error.code, error.status, error.title, error.message, retry_after_s=error.retry_after_s)


def record_problem(record: Mapping[str, Any] | None, members: Mapping[str, Any]) -> Response:
    """The problem for an error that a worker stored in a job record."""
    record = record or {}
    error = error_classes().get(str(record.get("code")), InternalError)
    detail = str(record.get("detail") or "The job ended without a result")
    return problem(error.code, error.status, error.title, detail, members)


def _unreadable() -> InvalidJson:
    return InvalidJson("The request body could not be read, or ended too early")


def register_error_handlers(app: Flask) -> None:
    """Answer every error as a problem; what is not ours says nothing about our insides."""

    @app.errorhandler(AppError)
    def app_error(error: AppError) -> Response:
        refused = {"code": error.code, "detail": error.message}
        if isinstance(error, ModelsNotReady):
            log.debug("request_refused", **refused)  # a load balancer asks /ready every few seconds
        elif isinstance(error, Unavailable):
            log.warning("request_refused", **refused)
        elif error.status >= 500:
            log.error("request_refused", **refused, exc_info=True)
        else:
            log.info("request_refused", **refused)
        return error_problem(error)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        if isinstance(error, RequestEntityTooLarge):
            limit = get_service().settings.upload_limit_mb
            return error_problem(RequestTooLarge(f"The request is larger than {limit} MB, or has too many parts"))
        status = error.code or 500
        if status == 404:
            return error_problem(NotFound(f"There is nothing at {request.path[:200]}"))
        if status == 400:
            return error_problem(_unreadable())
        title = str(error.name)
        reply = problem(title.lower().replace(" ", "_"), status, title, str(error.description or title))
        for name, value in error.get_headers():
            if name.lower() in ("allow", "content-range"):
                reply.headers[name] = value
        return reply

    @app.errorhandler(ParseException)
    def body_not_http(error: ParseException) -> Response:
        """A body in chunks is only seen to be none while it is read, by gunicorn and in here."""
        return error_problem(_unreadable())

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.error("request_failed", exc_info=error)
        return error_problem(InternalError("Something went wrong on our side; the log has it under this request_id"))
