"""How often one caller may ask: fixed windows in Redis, counted by the `limits` library.

A caller is its API key; without one, its address. The reply says where the caller stands (RateLimit and
RateLimit-Policy, draft-ietf-httpapi-ratelimit-headers). When Redis does not answer, everybody may ask: a limit is there
to share the service, and must not be what stops it.
"""

import ipaddress
import math
import threading
import time
from dataclasses import dataclass

import structlog
from flask import g, request
from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter

from shared.errors import RateLimited
from shared.settings import Settings

#: How long nothing is counted after Redis did not answer (s), so that not every request waits for it again.
_PAUSE_S = 5.0
_REDIS_TIMEOUT_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Standing:
    """Where a caller stands with one limit.

    Attributes:
        name: of the limit's window: "minute". quota: requests in a window.
        remaining: requests left. reset_s: seconds until they are `quota` again.
    """

    name: str
    quota: int
    remaining: int
    reset_s: int
    is_exceeded: bool


class Limiter:
    """Counts requests; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._limits: list[RateLimitItem] = [parse(part) for part in settings.rate_limit.split(";")]
        url = settings.redis_url.get_secret_value()
        storage = storage_from_string(
            url.replace("unix://", "redis+unix://", 1) if url.startswith("unix://") else url,
            wrap_exceptions=True,
            key_prefix="limits",
            socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
            retry=None,  # type: ignore[arg-type]  # redis-py's default tries again for seconds
        )
        self._limiter = FixedWindowRateLimiter(storage)
        self._lock = threading.Lock()
        self._paused_until = 0.0

    @property
    def policy(self) -> str:
        """The limits, as RateLimit-Policy says them."""
        return ", ".join(f'"{x.GRANULARITY.name}";q={x.amount};w={x.get_expiry()}' for x in self._limits)

    def look(self, who: str, *, counts: bool = False) -> list[Standing]:
        """Where a caller stands with every limit, after one more request if it counts. Empty while Redis is away."""
        if time.monotonic() < self._paused_until:
            return []
        try:
            return [self._standing(limit, who, counts) for limit in self._limits]
        except StorageError as exc:
            with self._lock:
                self._paused_until = time.monotonic() + _PAUSE_S
            log.warning("rate_limit_off", for_s=_PAUSE_S, reason=type(exc.storage_error).__name__)
            return []

    def admit(self, who: str) -> None:
        """Count this request.

        Raises:
            RateLimited: a limit is used up.
        """
        g.standings = self.look(who, counts=True)
        exceeded = [standing for standing in g.standings if standing.is_exceeded]
        if exceeded:
            worst = max(exceeded, key=lambda standing: standing.reset_s)
            g.retry_after_s = worst.reset_s
            raise RateLimited(f"More than {worst.quota} requests per {worst.name}; try again in {worst.reset_s} s")

    def _standing(self, limit: RateLimitItem, who: str, counts: bool) -> Standing:
        is_within = self._limiter.hit(limit, who) if counts else True
        reset_time, remaining = self._limiter.get_window_stats(limit, who)
        return Standing(
            name=limit.GRANULARITY.name,
            quota=limit.amount,
            remaining=remaining,
            # Redis rounds it to whole seconds: half a second more, or a client would come back too early.
            reset_s=min(limit.get_expiry(), max(1, math.ceil(reset_time - time.time() + 0.5))),
            is_exceeded=not is_within,
        )


def rate_headers(policy: str, standings: list[Standing]) -> dict[str, str]:
    """RateLimit-Policy (what may be asked) and, where it is known, RateLimit (what is left of it)."""
    left = ", ".join(f'"{item.name}";r={item.remaining};t={item.reset_s}' for item in standings)
    return {"RateLimit-Policy": policy, **({"RateLimit": left} if left else {})}


def client_address() -> str:
    """The client's address; of IPv6 the /64, which is what one client has at its disposal."""
    text = request.remote_addr or "unknown"
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text  # a Unix socket
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return text
