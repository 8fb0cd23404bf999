"""Examples for the API's description, made from the same types as the replies, so they cannot be wrong."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from api.schemas import (
    HealthReport,
    JobEnvelope,
    JobList,
    JobSummary,
    Links,
    ModelHealth,
    ProcessReply,
    Progress,
    QueueHealth,
    RedisHealth,
    WorkerHealth,
)
from shared import __version__
from shared.errors import InferenceFailed
from shared.jobs import CellRecord, CellStatus, ExtractionReport, JobStatus
from shared.storage import output_name

_BASE = "https://cutouts.example.com"
CURSOR = "MTc2Mzk3NjYxMjI1MDAwMDo0ZjBjN2QzYmUwYTk0ZjFj"
JOB_ID = "4f0c7d3be0a94f1c8f1f6b0f6a1d2c3e"
_BEGUN = datetime(2026, 11, 24, 9, 30, 12, 250000, tzinfo=UTC)
OUTPUT = output_name(123, JOB_ID, "front", "rmbg")
_URL = f"{_BASE}/outputs/{OUTPUT}"
#: A picture of 8x8 pixels, so that the example can be sent as it is.
_TINY_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGElEQVR42mP4jwMwEJA4IacBR7SSIMFVAK2qoFGM+3T2"
    "AAAAAElFTkSuQmCC"
)
#: name -> (what it is, the body)
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "addresses": (
        "Front and back by their addresses",
        {"id": 123, "output": {"front": "https://example.com/front.png", "back": "https://example.com/back.png"}},
    ),
    "options": (
        "One side, with a print file, proofs and a webhook",
        {
            "id": "order-123",
            "output": {"front": "https://example.com/front.png"},
            "options": {
                "models": ["birefnet"],
                "proofs": True,
                "print": {"canvas": "4500x5400", "alpha": "halftone", "underbase": True},
                "webhook": {"url": "https://example.com/hooks/cutouts", "events": ["job.succeeded", "job.failed"]},
            },
        },
    ),
    "inline": ("A picture in the request itself", {"id": 1, "output": {"front": _TINY_PNG}}),
}


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
        extraction={} if is_queued else {"front": ExtractionReport(status="skipped", reason="flat_artwork")},
        tokens=None,
        result=None,
        error=None,
    ).model_dump(mode="json")


def result(cells: list[str]) -> dict[str, Any]:
    """The body of a 200 for a job of these cells."""
    done = CellRecord(status=CellStatus.SUCCEEDED, width=1250, height=1500, bytes=900211, seconds=0.8)
    urls = {name: f"{_BASE}/outputs/{output_name(123, JOB_ID, *name.split('_'))}" for name in cells}
    reply = ProcessReply(
        id=123,
        processing_time_seconds=1.9,
        job_id=JOB_ID,
        status="succeeded",
        cells={name: done.model_copy(update={"url": url}) for name, url in urls.items()},
        timings={"queue_seconds": 0.01, "prepare_front_seconds": 0.05},
        sides={},
    )
    return {**reply.model_dump(mode="json"), **urls}


def health(models: tuple[str, ...], status: Literal["ready", "not_ready"]) -> dict[str, Any]:
    """The report of a service whose models are ready, or load."""
    is_ready = status == "ready"
    model = ModelHealth(
        status="ready" if is_ready else "loading", device="cuda:0", dtype="float16", profile="full", licence="MIT"
    )
    worker = WorkerHealth(name="worker-1", status="ready" if is_ready else "loading", device="cuda:0")
    return HealthReport(
        status=status,
        version=__version__,
        redis=RedisHealth(status="ready"),
        queue=QueueHealth(depth=0),
        models=dict.fromkeys(models, model),
        workers=[worker],
    ).model_dump(mode="json")


def listing() -> dict[str, Any]:
    return JobList(jobs=[JobSummary(**_summary(JobStatus.PARTIAL))], next_cursor=CURSOR).model_dump(mode="json")


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
    address = f"{_BASE}/jobs/{JOB_ID}"
    return {
        "job_id": JOB_ID,
        "id": 123,
        "status": status,
        "created_at": _BEGUN,
        "started_at": None if is_queued else _BEGUN + timedelta(seconds=0.02),
        "completed_at": _BEGUN + timedelta(seconds=1.2) if is_ended else None,
        "deadline": _BEGUN + timedelta(seconds=90),
        "outputs_removed_at": None,
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
