"""GET /openapi.json, and the pages for people: GET / (review) and GET /docs."""

from functools import cache
from pathlib import Path

from flask import Blueprint, Response, send_from_directory

from api.openapi import build_openapi
from api.service import get_service

routes = Blueprint("pages", __name__)

_STATIC = Path(__file__).parent.parent / "static"
#: Only our own files, no inline script or style, no frames: pages show pictures of strangers.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@routes.get("/openapi.json")
def openapi() -> Response:
    settings = get_service().settings
    return Response(_openapi_json(settings.models, bool(settings.key_hashes)), content_type="application/json")


@routes.get("/")
def review() -> Response:
    return _page("index.html")


@routes.get("/docs")
def docs() -> Response:
    return _page("docs.html")


@routes.get("/static/<name>")
def static(name: str) -> Response:
    return _page(name)


def _page(name: str) -> Response:
    reply = send_from_directory(_STATIC, name, conditional=True)
    reply.headers["Content-Security-Policy"] = _POLICY
    reply.headers["Cache-Control"] = "no-cache"  # small, and must never be older than the API it calls
    return reply


@cache
def _openapi_json(models: tuple[str, ...], has_keys: bool) -> str:
    document = build_openapi(models, has_keys=has_keys)
    return document.model_dump_json(by_alias=True, exclude_none=True, exclude_unset=True, indent=2)
