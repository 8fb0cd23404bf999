"""From an HTTP request to a typed ProcessRequest, and from its pictures to sources that a worker can read.

JSON and multipart/form-data are the same request; uploads and data: URIs become files of the job's work folder on the
outputs volume, so Redis and messages never hold pixels.
"""

import binascii
import errno
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from flask import Request
from pydantic import ValidationError
from pydantic_core import from_json
from werkzeug.datastructures import FileStorage

from api.schemas import ID_LIMIT, ProcessRequest, to_invalid_request
from shared.errors import InvalidJson, InvalidRequest, SourceTooLarge, UnsupportedMediaType
from shared.jobs import SIDES, Side, Source
from shared.storage import FolderStorage, not_written

_CHUNK = 1 << 20  # a multiple of 4, so base64 can be decoded chunk by chunk
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})
_FIELDS = ("id", *SIDES, "options")


def parse_request(request: Request) -> ProcessRequest:
    """The typed request.

    Raises:
        UnsupportedMediaType, InvalidJson, InvalidRequest: the sentence names the field.
        OutputNotWritten: there is no room for uploads on their way in (TMPDIR).
    """
    if request.mimetype == "multipart/form-data":
        try:
            return _validate(_from_form(request))
        except OSError as exc:
            # Large parts are written to a temporary file while they are read.
            if exc.errno in _NO_ROOM:
                raise not_written("the upload", exc) from exc
            raise
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(
            f"Send application/json or multipart/form-data, not {request.mimetype[:100] or 'a body without a type'}"
        )
    try:
        return ProcessRequest.model_validate_json(_read_body(request))
    except ValidationError as exc:
        if exc.errors(include_url=False)[0]["type"] == "json_invalid":
            raise InvalidJson(f"The body is not JSON: {exc.errors(include_url=False)[0]['ctx']['error']}") from exc
        raise to_invalid_request(exc) from exc


def _read_body(request: Request) -> bytes:
    body: bytes = request.stream.read()
    # A body sent in chunks is cut off at the limit without a word; reading on is what raises RequestEntityTooLarge.
    request.stream.read(1)
    return body


def _validate(fields: dict[str, Any]) -> ProcessRequest:
    try:
        return ProcessRequest.model_validate(fields)
    except ValidationError as exc:
        raise to_invalid_request(exc) from exc


def _from_form(request: Request) -> dict[str, Any]:
    sent: dict[str, str | FileStorage] = {}
    pairs: list[tuple[str, str | FileStorage]] = [*request.form.items(multi=True), *request.files.items(multi=True)]
    for name, value in pairs:
        if not name:
            raise InvalidRequest("every part of the form must have a name: " + ", ".join(_FIELDS))
        if name not in _FIELDS:
            raise InvalidRequest(f"{name[:100]}: unknown field")
        if name in sent:
            raise InvalidRequest(f"{name}: is given twice")
        # What a browser sends for a file field that was left empty.
        if value != "" and not (isinstance(value, FileStorage) and not value.filename and _size(value) == 0):
            sent[name] = value
    fields: dict[str, Any] = {"output": {side: sent[side] for side in SIDES if side in sent}}
    if "id" in sent:
        fields["id"] = _form_id(sent["id"])
    if "options" in sent:
        fields["options"] = _form_options(sent["options"])
    return fields


def _form_id(value: str | FileStorage) -> object:
    """Forms have no types: what JSON would write as an integer is one."""
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9][0-9]{0,15}", value) and abs(int(value)) <= ID_LIMIT:
        return int(value)
    return value


def _form_options(value: str | FileStorage) -> object:
    try:
        return from_json(value.read() if isinstance(value, FileStorage) else value, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidJson(f"options: is not JSON: {exc}") from exc


def store_sources(asked: ProcessRequest, job_id: str, storage: FolderStorage, limit_bytes: int) -> dict[Side, Source]:
    """Write uploads and data: URIs to the job's work folder and say where each side's picture is.

    Raises:
        InvalidRequest: an upload is empty, or a data: URI is broken.
        SourceTooLarge: a picture is larger than `limit_bytes`.
        OutputNotWritten: the disk is full, or the like.
    """
    sources: dict[Side, Source] = {}
    given: dict[Side, str | FileStorage | None] = {"front": asked.output.front, "back": asked.output.back}
    for side, value in given.items():
        if value is None:
            continue
        if isinstance(value, str) and value[:5].lower() != "data:":
            sources[side] = Source(kind="url", url=value)
            continue
        path = storage.write_work(job_id, f"{side}.upload", _limited(side, picture_chunks(side, value), limit_bytes))
        sources[side] = Source(kind="file", path=path)
    return sources


def picture_chunks(side: str, value: str | FileStorage) -> Iterator[bytes]:
    """The bytes of an upload or a data: URI, in parts.

    Raises:
        InvalidRequest: the data: URI is broken.
    """
    return _data_uri_chunks(side, value) if isinstance(value, str) else _upload_chunks(value)


def _limited(side: str, chunks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit_bytes:
            raise SourceTooLarge(f"{side}: the picture is larger than {limit_bytes / 1e6:g} MB")
        yield chunk
    if size == 0:
        raise InvalidRequest(f"{side}: the picture is empty (0 bytes)")


def _upload_chunks(upload: FileStorage) -> Iterator[bytes]:
    while chunk := upload.stream.read(_CHUNK):
        yield chunk


def _data_uri_chunks(side: str, uri: str) -> Iterator[bytes]:
    head, _, payload = uri.partition(",")
    if not head.lower().endswith(";base64"):
        yield unquote_to_bytes(payload)
        return
    if "%" in payload:
        payload = unquote(payload)
    payload = re.sub(r"\s+", "", payload)
    payload += "=" * (-len(payload) % 4)  # browsers accept it without padding too
    try:
        for start in range(0, len(payload), _CHUNK):
            yield binascii.a2b_base64(payload[start : start + _CHUNK], strict_mode=True)
    except ValueError as exc:
        raise InvalidRequest(f"output.{side}: the data: URI is not valid base64: {exc}") from exc


def _size(upload: FileStorage) -> int:
    end = upload.stream.seek(0, 2)
    upload.stream.seek(0)
    return int(end)
