"""Who asks: the seam between API keys and everything that is kept apart by them."""


def caller() -> str:
    """Name of the API key that the current request came with; "" while the service has no keys.

    Listings, idempotency keys and the result cache are each caller's own.
    """
    return ""
