"""Output URLs that end: signed when a reply is shaped, never when a record is stored.

    {BASE_URL}/outputs/{name}?expires=1790000000&signature=...

So a later GET /jobs/{job_id} gives fresh URLs of the same files, and changing the secret ends all old ones at once.
The signature covers the file's name and the time; host and scheme may change on the way through proxies.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from shared.errors import OutputUrlExpired, OutputUrlInvalid
from shared.settings import Settings
from shared.storage import job_of


class OutputUrls:
    """Signs and checks output URLs; does nothing while OUTPUT_URL_TTL is 0."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = f"{settings.base_url}/outputs/"
        self._ttl_s = settings.output_url_ttl
        self._secret = settings.output_url_secret.get_secret_value().encode()

    def sign(self, value: Any, job_id: str) -> Any:
        """A copy of a JSON value in which every output URL of this job is signed.

        No others: a reply also repeats what clients have sent, such as a webhook's address, and whoever put the address
        of somebody else's file there would get it back signed.
        """
        if not self._ttl_s:
            return value
        if isinstance(value, str):
            is_own = value.startswith(self._prefix) and job_of(value.removeprefix(self._prefix)) == job_id
            return self._signed(value) if is_own else value
        if isinstance(value, Mapping):
            return {name: self.sign(item, job_id) for name, item in value.items()}
        if isinstance(value, list):
            return [self.sign(item, job_id) for item in value]
        return value

    def check(self, name: str, query: Mapping[str, str]) -> int | None:
        """Seconds that the URL of this output is still good for; None when URLs are not signed.

        Raises:
            OutputUrlInvalid: no signature, or not ours. OutputUrlExpired: its time is over.
        """
        if not self._ttl_s:
            return None
        expires, signature = query.get("expires", ""), query.get("signature", "")
        # Bytes: compare_digest refuses text that is not ASCII.
        if not hmac.compare_digest(signature.encode(), self._signature(name, expires).encode()):
            raise OutputUrlInvalid("The URL of this output is not signed by us; take it from GET /jobs/{job_id}")
        left_s = int(expires) - int(time.time())
        if left_s <= 0:
            raise OutputUrlExpired("The URL of this output has ended; GET /jobs/{job_id} gives a fresh one")
        return left_s

    def _signed(self, url: str) -> str:
        name = url.removeprefix(self._prefix).partition("?")[0]
        expires = str(int(time.time()) + self._ttl_s)
        return f"{self._prefix}{name}?{urlencode({'expires': expires, 'signature': self._signature(name, expires)})}"

    def _signature(self, name: str, expires: str) -> str:
        digest = hmac.digest(self._secret, f"{name}\n{expires}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
