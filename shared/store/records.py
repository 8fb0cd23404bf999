"""A job as the fields of a Redis hash, and back."""

import json
from typing import Any

from shared.jobs import SIDES, Job, cell_names
from shared.options import WebhookOptions

#: Fields that are JSON in the hash; all others are their text.
_JSON_FIELDS = ("id", "sources", "models", "options", "use_cache", "result", "error")

#: Made once: json.dumps makes one for each value.
_ENCODER = json.JSONEncoder(separators=(",", ":"), default=lambda item: item.isoformat())

#: A side's ExtractionReport (JSON) is the mark of this name plus the side's.
EXTRACTION_MARK = "extraction:"


def job_key(job_id: str) -> str:
    return f"job:{job_id}"


def dump(value: Any) -> str:
    """JSON without spaces; times in ISO format."""
    return _ENCODER.encode(value)


def encode(name: str, value: Any) -> str:
    """The text of one field of a record.

    Raises:
        ValueError: a record has no such field.
    """
    if name not in Job.model_fields:
        raise ValueError(f"a job record has no field {name}")
    return dump(value) if name in _JSON_FIELDS else str(value)


def to_hash(job: Job) -> dict[str, str]:
    record = job.model_dump(mode="json", exclude={"cells", "extraction"})
    fields = {name: encode(name, value) for name, value in record.items() if value is not None}
    webhook = job.options.get("webhook")
    if webhook is not None:
        # Which events the webhook wants, for the script: ",job.failed,cell.done,".
        fields["hook:events"] = f",{','.join(WebhookOptions.model_validate(webhook).events)},"
    # A retry begins with what became of the sides that it takes over.
    fields |= {f"mark:{EXTRACTION_MARK}{side}": report.model_dump_json() for side, report in job.extraction.items()}
    return fields | {f"cell:{name}": dump(cell.model_dump(mode="json")) for name, cell in job.cells.items()}


def marks_of(fields: dict[str, str]) -> dict[str, str]:
    """The marks in a record's fields, by name."""
    return {name.removeprefix("mark:"): value for name, value in fields.items() if name.startswith("mark:")}


def from_hash(fields: dict[str, str]) -> Job:
    record: dict[str, Any] = {name: value for name, value in fields.items() if ":" not in name}
    record |= {name: json.loads(record[name]) for name in _JSON_FIELDS if name in record}
    stored = {name[5:]: json.loads(value) for name, value in fields.items() if name.startswith("cell:")}
    ordered = [name for name in cell_names(SIDES, tuple(record["models"])) if name in stored]
    reports = {side: json.loads(fields[mark]) for side in SIDES if (mark := f"mark:{EXTRACTION_MARK}{side}") in fields}
    return Job.model_validate({**record, "cells": {name: stored[name] for name in ordered}, "extraction": reports})
