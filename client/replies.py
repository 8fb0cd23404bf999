"""What the service answers, as frozen types. Fields that a newer service adds are kept (`model_extra`), not refused."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from client.errors import CutoutError

#: A job or cell in one of these does not change any more.
FINAL = frozenset({"succeeded", "partial", "failed", "canceled", "expired"})
FINAL_CELLS = frozenset({"succeeded", "failed", "canceled", "expired"})


class Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Failure(Reply):
    """The error of a job or a cell."""

    code: str
    detail: str = ""
    retryable: bool = False


class Cell(Reply):
    """One side through one model.

    Attributes:
        status: queued, processing, succeeded or failed.
        width, height: pixels. bytes: size of the file. seconds: what it took.
        files: addresses of what the options added: print, underbase, thumbnail, proof_black, ...
        preflight: what a printer would check; its `level` is the worst of the checks: ok, warn or fail.
        own_alpha: the artwork came already cut out and kept its own alpha; no model was run.
        cached: it was taken over from an earlier job.
    """

    status: str
    url: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    files: dict[str, str] = Field(default_factory=dict)
    preflight: dict[str, Any] | None = None
    own_alpha: bool = False
    cached: bool = False
    error: Failure | None = None


class Progress(Reply):
    """Cells that are finished (well or not), of all cells."""

    done: int = 0
    total: int = 0


class Job(Reply):
    """How a job stands.

    Attributes:
        id: your own id, as sent.
        status: queued, preparing, processing; or final: succeeded, partial, failed, canceled, expired.
        queue_position: 1 is the next. eta_seconds: until a queued job is likely done.
        deadline: it expires when it has not ended by then. retry_of: the job whose failed cells it does again.
        outputs_removed_at: its files are gone since then.
        cells: by name, `front_rmbg`, `back_birefnet`, ...
        result: the body of a 200 from POST /process, once there is one.
    """

    job_id: str
    id: int | str
    status: str
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    deadline: datetime | None = None
    outputs_removed_at: datetime | None = None
    retry_of: str | None = None
    queue_position: int | None = None
    eta_seconds: float | None = None
    progress: Progress = Progress()
    cells: dict[str, Cell] = Field(default_factory=dict)
    result: dict[str, Any] | None = None
    error: Failure | None = None
    webhook: dict[str, Any] | None = None

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def failed_cells(self) -> dict[str, Cell]:
        """The cells that have no cutout, of a job that has ended."""
        return {name: cell for name, cell in self.cells.items() if cell.status != "succeeded"}

    @property
    def contact_sheet(self) -> str | None:
        """Address of the page with all proofs, when they were asked for."""
        return (self.result or {}).get("contact_sheet")

    def opinion(self, side: str) -> dict[str, Any]:
        """What comparing the models says about a side: `recommended`, `needs_review`, ...; empty when none was made."""
        sides = (self.result or {}).get("sides") or {}
        opinion: dict[str, Any] = sides.get(side) or {}
        return opinion

    def raise_for_status(self) -> None:
        """Return when at least one cutout is there.

        Raises:
            CutoutError: the job failed, was canceled or has expired; the code is the job's own.
        """
        if self.status in ("failed", "canceled", "expired"):
            error = self.error or Failure(code=f"job_{self.status}", detail=f"The job is {self.status}")
            raise CutoutError(error.code, error.detail, retryable=error.retryable, job_id=self.job_id)


class JobPage(Reply):
    """Some jobs, newest first; `next_cursor` gives the next ones, None when these were the last."""

    jobs: list[Job]
    next_cursor: str | None = None


class Event(Reply):
    """One change of a job.

    Attributes:
        id: its place in the job's stream; give it back as `after` to go on from here.
        type: "status" or "cell".
        data: the change: `status` of the job, or `cell` and how it stands. `final` is true in the last one.
    """

    id: str
    type: str
    data: dict[str, Any]

    @property
    def is_final(self) -> bool:
        return bool(self.data.get("final"))


class Health(Reply):
    """Whether jobs are being done: `status` is ready or not_ready."""

    status: str
    version: str = ""
    redis: dict[str, Any] = Field(default_factory=dict)
    queue: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    workers: list[dict[str, Any]] = Field(default_factory=list)
