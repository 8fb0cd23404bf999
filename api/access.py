"""Who may use the API: keys, and which jobs a key sees.

With API_KEYS set every route asks for a key, unless its blueprint is listed as open below; a route that somebody adds
is therefore closed. A job belongs to the key that made it: to any other key it looks like a job that never was.
"""

import hashlib
import hmac
import ipaddress
import re
from urllib.parse import urlsplit

import structlog
from flask import Flask, Response, g, request

from api.limits import Limiter, client_address, rate_headers
from api.service import Service
from shared.errors import Unauthorized
from shared.jobs import JOB_ID
from shared.settings import Settings

#: Blueprints that ask for no key and are not counted: a load balancer's probes (health says less without a key), the
#: pages' own files, and outputs, which have an unguessable name or a signed URL and are shown many at a time.
_OPEN = frozenset({"health", "pages", "outputs"})
#: Endpoints of open blueprints that ask all the same: what runs here is not for strangers.
_CLOSED = frozenset({"health.metrics"})
#: Endpoints that answer from this process alone: a Redis that hangs must not make a live one look dead.
_ALONE = frozenset({"health.live"})

_KEY_MISSING = "Send your API key: Authorization: Bearer <key>, or X-API-Key: <key>"
_KEY_WRONG = "This API key is not known here; was it mistyped or withdrawn?"

log = structlog.get_logger(__name__)


def hash_key(key: str) -> str:
    """SHA-256 of a key, in hexadecimal. No salt or stretching: keys are 256 random bits, nobody can try them out."""
    return hashlib.sha256(key.encode()).hexdigest()


def find_caller(key: str, hashes: dict[str, str]) -> str | None:
    """The name of a key, or None. Takes the same time for every key that is not ours."""
    digest = hash_key(key)
    found = None
    for name, expected in hashes.items():
        if hmac.compare_digest(digest, expected):
            found = name
    return found


def register_access(app: Flask, service: Service) -> None:
    """Before every request: whose it is, whether they ask too often, whether they may, whether the job is theirs."""
    hashes = service.settings.key_hashes
    limiter = Limiter(service.settings) if service.settings.rate_limit else None
    _warn_if_open(service.settings)

    @app.before_request
    def check_access() -> None:
        key = _sent_key() if hashes else ""
        g.caller = (find_caller(key, hashes) if key else None) or ""
        g.is_trusted = bool(g.caller) or not hashes
        if g.caller:
            structlog.contextvars.bind_contextvars(caller=g.caller)
        who = f"key:{g.caller}" if g.caller else f"address:{client_address()}"
        if request.blueprint in _OPEN and request.endpoint not in _CLOSED:
            if limiter is not None and request.endpoint not in _ALONE:
                g.standings = limiter.look(who)
            return
        if limiter is not None:
            limiter.admit(who)  # before the key is asked for: who tries keys out is counted by address
        if request.endpoint is None:
            return  # its 404 or 405 says nothing that the documentation does not
        if not g.is_trusted:
            raise Unauthorized(_KEY_WRONG if key else _KEY_MISSING)
        job_id = (request.view_args or {}).get("job_id", "")
        if hashes and JOB_ID.fullmatch(job_id):
            service.store.check_caller(job_id, g.caller)

    @app.after_request
    def say_where_they_stand(reply: Response) -> Response:
        if limiter is not None:
            reply.headers.update(rate_headers(limiter.policy, g.get("standings", [])))
        if reply.status_code == 401:
            reply.headers["WWW-Authenticate"] = 'Bearer realm="cutout"'
        if reply.status_code == 429:
            reply.headers["Retry-After"] = str(g.retry_after_s)
        return reply


def _sent_key() -> str:
    match = re.fullmatch(r"bearer +(\S+) *", request.headers.get("Authorization", ""), re.IGNORECASE)
    return match[1] if match else request.headers.get("X-API-Key", "").strip()


def _warn_if_open(settings: Settings) -> None:
    host = urlsplit(settings.base_url).hostname or ""
    if not settings.key_hashes and not _is_local(host):
        log.warning("api_is_open", base_url=settings.base_url, detail="Anyone who reaches it may use it; set API_KEYS")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
