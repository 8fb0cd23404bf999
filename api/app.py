"""The web app: routes, errors, request ids, the access log. Nothing happens at import time."""

import re
import time
import uuid

import structlog
from flask import Flask, Response, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from api.access import register_access
from api.errors import register_error_handlers
from api.measures import Measures
from api.routes import events, health, jobs, outputs, pages, process
from api.service import Service
from shared.settings import Settings, load_settings

#: Request ids that we take over from the client or its proxy.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: Routes that machines ask every few seconds; logged only at DEBUG.
_QUIET = frozenset({"/live", "/ready", "/metrics", "/health"})

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """The service's web app.

    Redis need not run yet: routes that need it answer 503 until it does.

    Raises:
        FatalError: no settings are given and those in the environment are wrong.
    """
    settings = settings or load_settings()
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.upload_limit_bytes
    app.config["MAX_FORM_PARTS"] = 16
    app.extensions["service"] = service = Service.from_settings(settings)
    service.metrics.registry.register(Measures(service))
    for module in (process, jobs, events, outputs, health, pages):
        app.register_blueprint(module.routes)
    register_error_handlers(app)
    _register_hooks(app, service)
    register_access(app, service)
    if settings.trusted_proxies:
        # The address only: what else proxies claim (host, scheme, prefix) is BASE_URL's business.
        app.wsgi_app = ProxyFix(app.wsgi_app, settings.trusted_proxies, x_proto=0)  # type: ignore[method-assign]
    return app


def _register_hooks(app: Flask, service: Service) -> None:
    @app.before_request
    def begin() -> None:
        sent = request.headers.get("X-Request-ID", "")
        g.request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        g.begun = time.monotonic()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def end(reply: Response) -> Response:
        seconds = time.monotonic() - g.begun
        route = request.url_rule.rule if request.url_rule else "unknown"
        method = request.method if route != "unknown" else "ANY"
        reply.headers["X-Request-ID"] = g.request_id
        reply.headers["X-Content-Type-Options"] = "nosniff"
        # Pages set their own policy; everything else must never run as one.
        reply.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        reply.headers.setdefault("Referrer-Policy", "no-referrer")
        service.metrics.requests.labels(method, route, reply.status_code).inc()
        service.metrics.seconds.labels(method, route).observe(seconds)
        write = log.debug if route in _QUIET else log.info
        write(
            "request_done",
            method=request.method,
            path=request.path[:500],
            status=reply.status_code,
            seconds=round(seconds, 4),
        )
        return reply

    @app.teardown_request
    def forget(_: BaseException | None) -> None:
        structlog.contextvars.clear_contextvars()
