"""Files from the service: streamed beside their place, checked, and renamed into it."""

import contextlib
import uuid
from pathlib import Path

import requests

from client.errors import DOWNLOAD_INCOMPLETE, CutoutError
from client.transport import Transport, connection_error

_CHUNK = 1 << 18
#: What files begin with, by suffix.
_SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".webp": b"RIFF"}
_SIGNATURE_BYTES = 8


def download_file(transport: Transport, url: str, path: Path, size_bytes: int | None = None) -> Path:
    """Write what is at `url` to `path`, which afterwards is whole or as it was before.

    Args:
        size_bytes: the size that it must have, where that is known.
    Returns:
        `path`.
    Raises:
        CutoutError: the service refuses, or the file does not come whole, time and again.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    patience = transport.patience()
    try:
        while True:
            try:
                _fetch(transport, url, part, size_bytes)
                break
            except CutoutError as error:
                if error.code != DOWNLOAD_INCOMPLETE:
                    raise
                patience.pause(error)
        _check_signature(part, path.suffix.lower())
        part.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    return path


def _fetch(transport: Transport, url: str, part: Path, size_bytes: int | None) -> None:
    # Packed, the number of bytes on the way would say nothing about the file; and PNGs are packed already.
    with transport.request("GET", url, stream=True, headers={"Accept-Encoding": "identity"}) as reply:
        declared = reply.headers.get("Content-Length", "")
        expected = size_bytes if size_bytes is not None else int(declared) if declared.isdecimal() else None
        written = 0
        with part.open("wb") as file:
            try:
                for chunk in reply.iter_content(_CHUNK):
                    file.write(chunk)
                    written += len(chunk)
            except requests.RequestException as exc:
                raise _incomplete(connection_error(url, exc).detail) from exc
    if expected is not None and written != expected:
        raise _incomplete(f"got {written} of {expected} bytes")


def _check_signature(part: Path, suffix: str) -> None:
    signature = _SIGNATURES.get(suffix)
    with part.open("rb") as file:
        head = file.read(_SIGNATURE_BYTES)
    if signature is not None and not head.startswith(signature):
        raise _incomplete(f"begins with {head!r}, which is no {suffix[1:].upper()} file")


def _incomplete(detail: str) -> CutoutError:
    return CutoutError(DOWNLOAD_INCOMPLETE, f"The file did not come whole: {detail}", retryable=True)
