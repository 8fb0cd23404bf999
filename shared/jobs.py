"""What a job is: its states, its cells and its record.

    queued -> preparing -> processing -> succeeded | partial | failed | canceled | expired

A job may fail, be canceled or expire from any open state; a final state never changes.
"""

import re
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Sides in the order they are reported.
SIDES = ("front", "back")
Side = Literal["front", "back"]

#: A job id, as it appears in URLs, file names and Redis keys.
JOB_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


class JobStatus(StrEnum):
    """Where a job is in its life; from `succeeded` on it has ended."""

    QUEUED = "queued"
    PREPARING = "preparing"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


class CellStatus(StrEnum):
    """Where a cell is in its life."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


FINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.PARTIAL, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED})
OPEN = frozenset(JobStatus) - FINAL
FINAL_CELLS = frozenset({CellStatus.SUCCEEDED, CellStatus.FAILED})

_STOPPED = frozenset({JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED})
#: state -> the states it may change to.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: _STOPPED | {JobStatus.PREPARING},
    JobStatus.PREPARING: _STOPPED | {JobStatus.PROCESSING},
    JobStatus.PROCESSING: _STOPPED | {JobStatus.SUCCEEDED, JobStatus.PARTIAL},
    **dict.fromkeys(FINAL, frozenset[JobStatus]()),
}


class CellRecord(BaseModel):
    """How one cell stands: one side of the job through one model."""

    model_config = ConfigDict(extra="forbid")

    status: CellStatus = Field(CellStatus.QUEUED, description="Its state; of a job that has ended, succeeded or failed")
    url: str | None = Field(None, description="Address of the result, once it is written")
    width: int | None = Field(None, description="Width of the result (px), that of the source")
    height: int | None = Field(None, description="Height of the result (px), that of the source")
    bytes: int | None = Field(None, description="Size of the file")
    seconds: float | None = Field(None, description="From the start of the cell to its written file (s)")
    files: dict[str, str] = Field(
        default_factory=dict,
        description="Addresses of what the options added: print, underbase, thumbnail, proof_black, ...",
    )
    preflight: dict[str, Any] | None = Field(None, description="What a printer would check, each with a sentence")
    print: dict[str, Any] | None = Field(None, description="What happened to the art on its way to the print canvas")
    own_alpha: bool = Field(
        False,
        description="The artwork came already cut out and kept its own alpha; no model was run (options.own_alpha)",
    )
    cached: bool = Field(False, description="It was not computed for this job but taken over from an earlier one")
    error: dict[str, Any] | None = Field(None, description="Why a failed cell failed")


class TokenUse(BaseModel):
    """Tokens, as Gemini has counted them."""

    model_config = ConfigDict(extra="forbid")

    prompt: int = Field(0, description="Of what was sent")
    candidates: int = Field(0, description="Of what was answered, thoughts included")
    total: int = Field(0, description="All that Gemini counts")

    def __add__(self, other: "TokenUse") -> "TokenUse":
        return TokenUse(
            prompt=self.prompt + other.prompt,
            candidates=self.candidates + other.candidates,
            total=self.total + other.total,
        )


class ExtractionReport(BaseModel):
    """What became of one side's design extraction."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["extracted", "skipped", "failed"] = Field(
        description="skipped: the original was used, as asked or because that is right"
    )
    reason: str = Field(
        description="extracted: asked or photo; skipped: not_asked, not_configured, cutout or flat_artwork; failed: "
        "the error's code"
    )
    detail: str | None = Field(None, description="One sentence about a failure")
    warning: str | None = Field(
        None, description="One sentence when a person should look at the result; it also sets the side's needs_review"
    )
    original_url: str | None = Field(None, description="The side as it came, when its extracted design was used")
    score: float | None = Field(None, description="0..1: how far the answer is the design of the original")
    redrawn: bool | None = Field(None, description="By that score it is another design")
    model: str | None = Field(None, description="The Gemini model that was asked")
    calls: int = Field(0, description="Calls to Gemini for this job, and one for each time the worker died of them")
    tokens: TokenUse | None = Field(None, description="What they used; null when nobody was asked")
    cached: bool = Field(False, description="The answer was made for an earlier job with the same picture")
    seconds: float | None = Field(None, description="From the decision to the finished picture, waits included (s)")


class Source(BaseModel):
    """Where a side's picture comes from.

    Attributes:
        kind: "url": fetch `url`; "file": read `path`, relative to the outputs folder (`.work/<job_id>/front.upload`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["url", "file"]
    url: str | None = Field(None, repr=False)  # its query may be a signature, which no log shall show
    path: str | None = None


class Job(BaseModel):
    """The record of one job, as the store returns it.

    Attributes:
        id: the client's id, an integer or a string exactly as sent.
        created_at, started_at, completed_at: UTC.
        deadline: the job expires when it is not done by then (UTC).
        outputs_removed_at: when its files were removed by age or size (UTC); its URLs answer 410 from then on.
        caller: name of the API key it came with, "" without keys; scopes the listings, the cache and idempotency keys.
        retry_of: the job that this one repeats in part.
        use_cache: cells may be taken over from earlier jobs.
        extraction: what became of each side's design extraction, once it is decided.
        result: the body of the 200 reply, set when the job ends with at least one cutout.
        error: {"code", "detail", "retryable"} when the whole job failed.
    """

    model_config = ConfigDict(extra="forbid")

    job_id: str = Field(pattern=rf"^{JOB_ID.pattern}$")
    id: int | str
    status: JobStatus = JobStatus.QUEUED
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    deadline: datetime | None = None
    outputs_removed_at: datetime | None = None
    request_id: str = ""
    caller: str = ""
    retry_of: str | None = None
    use_cache: bool = True
    sources: dict[Side, Source]
    models: tuple[str, ...]
    options: dict[str, Any] = Field(default_factory=dict)
    cells: dict[str, CellRecord] = Field(default_factory=dict)
    extraction: dict[str, ExtractionReport] = Field(default_factory=dict)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def is_overdue(self) -> bool:
        """Whether the job is open past its deadline."""
        return not self.is_final and self.deadline is not None and utc_now() >= self.deadline

    @property
    def tokens(self) -> TokenUse | None:
        """What all sides used of Gemini, or None when it was not asked."""
        used = [report.tokens for report in self.extraction.values() if report.tokens is not None]
        return sum(used, TokenUse()) if used else None

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides this job has, in reporting order."""
        return tuple(side for side in SIDES if side in self.sources)

    @property
    def output_urls(self) -> list[str]:
        """Addresses of all files that were delivered: print files, proofs, originals and the contact sheet too."""
        urls = [url for cell in self.cells.values() for url in (cell.url, *cell.files.values())]
        urls += [side.original_url for side in self.extraction.values()]
        return [url for url in (*urls, (self.result or {}).get("contact_sheet")) if url]


def new_job_id() -> str:
    """A fresh, unguessable job id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def utc_now() -> datetime:
    return datetime.now(UTC)


def cell_name(side: str, model: str) -> str:
    """`front_rmbg` for side `front` and model `rmbg`."""
    return f"{side}_{model}"


def cell_names(sides: tuple[str, ...], models: tuple[str, ...]) -> list[str]:
    """All cells of a job in reporting order: sides first, then models (front_rmbg, front_birefnet, back_rmbg, ...)."""
    return [cell_name(side, model) for side in SIDES if side in sides for model in models]


def new_job(
    *,
    job_id: str,
    client_id: int | str,
    sources: dict[Side, Source],
    models: tuple[str, ...],
    options: dict[str, Any] | None = None,
    request_id: str = "",
    **fields: Any,
) -> Job:
    """A queued job with all of its cells queued, created now; `fields` are those of the record that are rarer."""
    names = cell_names(tuple(sources), models)
    return Job(
        job_id=job_id,
        id=client_id,
        created_at=utc_now(),
        request_id=request_id,
        sources=sources,
        models=models,
        options=options or {},
        **{"cells": {name: CellRecord() for name in names}, **fields},
    )
