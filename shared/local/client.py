"""The seed's client check: health, then one job with the sample designs, over plain HTTP like any client."""

import json
import time
from pathlib import Path
from typing import Any

import requests

from shared.errors import FatalError

_REQUEST_TIMEOUT_S = 180


def check_health(base_url: str) -> dict[str, Any]:
    """The body of GET /health.

    Raises:
        FatalError: nobody answers, or the service is not healthy.
    """
    try:
        response = requests.get(f"{base_url}/health", timeout=10)
        body = response.json()
    except (requests.RequestException, ValueError) as exc:
        raise FatalError(f"{base_url} does not answer; start the service with `make up` or `make local`") from exc
    if response.status_code != 200:
        raise FatalError(f"The service at {base_url} is not healthy:\n{json.dumps(body, indent=2)}")
    result: dict[str, Any] = body
    return result


def send_job(base_url: str, front: Path, back: Path, client_id: str, api_key: str = "") -> tuple[dict[str, Any], float]:
    """Send two pictures as one job and wait for it, however long it takes.

    Args:
        api_key: sent along when it is not empty.
    Returns:
        The reply of 200, and the seconds from request to reply.
    Raises:
        FatalError: the job was refused or failed.
    """
    started = time.perf_counter()
    headers = {"X-API-Key": api_key} if api_key else {}
    with front.open("rb") as front_file, back.open("rb") as back_file:
        response = requests.post(
            f"{base_url}/process",
            # The pictures are artwork, and a check shall cost nothing: they never go to Gemini.
            data={"id": client_id, "options": json.dumps({"extract": "never"})},
            files={"front": (front.name, front_file), "back": (back.name, back_file)},
            headers={
                **headers,
                "Cache-Control": "no-cache",
            },  # a check, a time: both want the work done, not remembered
            timeout=_REQUEST_TIMEOUT_S,
        )
    body = response.json()
    while response.status_code == 202:  # the wait ran out; the job goes on
        time.sleep(0.5)
        envelope = requests.get(f"{base_url}/jobs/{body['job_id']}", headers=headers, timeout=10).json()
        if envelope["status"] in ("failed", "canceled", "expired"):
            raise FatalError(f"The job {envelope['status']}:\n{json.dumps(envelope['error'], indent=2)}")
        if envelope["result"]:
            return envelope["result"], time.perf_counter() - started
    if response.status_code != 200:
        raise FatalError(f"POST /process answered {response.status_code}:\n{json.dumps(body, indent=2)}")
    return body, time.perf_counter() - started


def fetch_outputs(reply: dict[str, Any]) -> dict[str, bytes]:
    """The PNG of every cell that succeeded, by cell name."""
    files = {}
    for name, cell in reply["cells"].items():
        if cell["status"] == "succeeded":
            response = requests.get(reply[name], timeout=60)
            response.raise_for_status()
            files[name] = response.content
    return files
