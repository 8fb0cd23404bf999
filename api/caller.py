"""Who asks: the seam between API keys and everything that is kept apart by them."""

from flask import g


def caller() -> str:
    """Name of the API key that the current request came with; "" while the service has no keys.

    Listings, idempotency keys and the result cache are each caller's own.
    """
    return str(g.get("caller", ""))


def is_trusted() -> bool:
    """Whether the current request may see the service's insides: it has a key, or the service has none."""
    return bool(g.get("is_trusted", False))
