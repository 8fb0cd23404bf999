"""Examples for the API's description, made from the same types as the replies, so they cannot be wrong."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from api.schemas import JobEnvelope, JobList, JobSummary, Links, Progress
from shared.errors import InferenceFailed
from shared.jobs import CellRecord, CellStatus, JobStatus
from shared.storage import output_name

_BASE = "https://cutouts.example.com"
_JOB_ID = "4f0c7d3be0a94f1c8f1f6b0f6a1d2c3e"
_BEGUN = datetime(2026, 11, 24, 9, 30, 12, 250000, tzinfo=UTC)
_URL = f"{_BASE}/outputs/{output_name(123, _JOB_ID, 'front', 'rmbg')}"


def envelope(status: JobStatus) -> dict[str, Any]:
    """A job that waits, was canceled in mid-work, or delivered one of its two cells."""
    is_queued = status == JobStatus.QUEUED
    error = InferenceFailed("birefnet gave no finite answer for 1 of 1 pictures").to_record()
    done = CellRecord(status=CellStatus.SUCCEEDED, url=_URL, width=1250, height=1500, bytes=900211, seconds=0.8)
    cells = {
        "front_rmbg": CellRecord() if is_queued else done,
        "front_birefnet": CellRecord() if is_queued else CellRecord(status=CellStatus.FAILED, error=error),
    }
    return JobEnvelope(
        **_summary(status),
        queue_position=3 if is_queued else None,
        eta_seconds=5.4 if is_queued else None,
        cells=cells,
        result=None,
        error=None,
    ).model_dump(mode="json")


def listing() -> dict[str, Any]:
    cursor = "MTc2Mzk3NjYxMjI1MDAwMDo0ZjBjN2QzYmUwYTk0ZjFj"
    return JobList(jobs=[JobSummary(**_summary(JobStatus.PARTIAL))], next_cursor=cursor).model_dump(mode="json")


def events() -> str:
    """What a stream of events looks like on the wire."""
    frames = [
        ("1763976612250-0", "status", {"type": "status", "status": "queued", "at": "2026-11-24T09:30:12.25Z"}),
        ("1763976613101-0", "cell", {"type": "cell", "cell": "front_rmbg", "status": "succeeded", "url": _URL}),
        ("1763976613420-0", "status", {"type": "status", "status": "partial", "final": True, "result": {}}),
    ]
    return "retry: 2000\n\n" + "".join(
        f"id: {name}\nevent: {kind}\ndata: {json.dumps(event)}\n\n" for name, kind, event in frames
    )


def _summary(status: JobStatus) -> dict[str, Any]:
    is_queued, is_ended = status == JobStatus.QUEUED, status in (JobStatus.PARTIAL, JobStatus.CANCELED)
    address = f"{_BASE}/jobs/{_JOB_ID}"
    return {
        "job_id": _JOB_ID,
        "id": 123,
        "status": status,
        "created_at": _BEGUN,
        "started_at": None if is_queued else _BEGUN + timedelta(seconds=0.02),
        "completed_at": _BEGUN + timedelta(seconds=1.2) if is_ended else None,
        "deadline": _BEGUN + timedelta(seconds=90),
        "retry_of": None,
        "progress": Progress(done=0 if is_queued else 2, total=2),
        "links": Links(
            self=address,
            events=f"{address}/events",
            cancel=f"{address}/cancel",
            retry=f"{address}/retry",
            outputs={} if is_queued else {"front_rmbg": _URL},
        ),
    }
