"""What the worker's reports inside a reply look like, for openapi.json.

The worker builds them as plain objects and the API passes them on unread; a test holds these types against real ones.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.jobs import ExtractionReport


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorRecord(_Report):
    """Why a cell or a job failed."""

    code: str = Field(description="The same codes as those of errors, see the table")
    detail: str = Field(description="What is wrong, for a person")
    retryable: bool = Field(description="Whether the same may work later")


class PreflightCheck(_Report):
    """One property that matters in print."""

    name: str = Field(description="art_box, coverage, resolution, soft_pixels, islands, thinnest_line, halo, ...")
    level: Literal["ok", "warn", "fail"] = Field(description="fail: a printer would refuse it")
    value: float | list[float] | None = Field(description="The headline number; null when there was nothing to measure")
    message: str = Field(description="What it means for the print and what to do")
    details: dict[str, float | list[float] | None] = Field(description="Further numbers, unit in the name")


class PreflightPrint(_Report):
    """What the checks assumed about the print."""

    width_in: float = Field(description="Width of the art (in)")
    height_in: float = Field(description="Height of the art (in)")
    dpi: float = Field(description="Its pixels per printed inch")
    width_assumed: bool = Field(description="Nobody gave a width; the art fills the usual print area")


class Preflight(_Report):
    """What a printer would check."""

    level: Literal["ok", "warn", "fail"] = Field(description="The worst of the checks")
    size_px: list[int] = Field(description="Width and height of the picture (px)")
    print: PreflightPrint | None = Field(description="null when there is no art")
    checks: list[PreflightCheck] = Field(description="Every check")


class PrintReport(_Report):
    """What happened to the art on its way to the print canvas."""

    width: int = Field(description="Width of the file (px)")
    height: int = Field(description="Height of the file (px)")
    scale: float = Field(description="Canvas pixels per source pixel")
    upscaled: bool = Field(description="The art was enlarged, which options.print.allow_upscale allowed")
    limited: bool = Field(description="The art has too few pixels to fill the canvas and was not enlarged")
    box: list[int] | None = Field(description="Where the art is: left, top, right, bottom (px); null without art")
    effective_dpi: float = Field(description="The source's own pixels per printed inch")
    removed_islands: int = Field(description="Specks below the printable minimum that were removed")
    removed_pixels: int = Field(description="Their pixels")


class Region(_Report):
    """A place where two masks differ."""

    box: list[float] = Field(description="left, top, right, bottom in 0..1 of the side")
    share: float = Field(description="Share of the side")


class Pair(_Report):
    """Two models compared, all numbers 0..1."""

    models: list[str] = Field(description="Their names")
    iou: float = Field(description="Intersection over union of the masks at 0.5")
    mean_difference: float = Field(description="Of alpha")
    disputed: float = Field(description="Share of the art that only one of them keeps, edges left aside")
    regions: list[Region] = Field(description="The largest disagreements")


class ModelOpinion(_Report):
    """One model's mask."""

    coverage: float = Field(description="Share of the side inside the mask")
    decisiveness: float = Field(description="1: no pixel between in and out")


class Opinion(_Report):
    """How far the models agree on a side."""

    agreement: float | None = Field(description="Lowest IoU of any pair; null where no models were compared")
    pairs: list[Pair] = Field(description="Every two models compared")
    models: dict[str, ModelOpinion] = Field(description="Every model by name")
    recommended: str | None = Field(description="The model whose cutout to take")
    reason: str = Field(description="Why that one")
    needs_review: bool = Field(
        description="Whether a person should look; always where the extracted design differs from the original, or "
        "extraction failed and the original was used"
    )
    review_reason: str = Field(description="Why a person should look")


class SideReport(Opinion):
    """What is known of a side: the models' opinion, where a cell was delivered, and its extraction."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("required", None))

    extraction: ExtractionReport | None = Field(None, description="What became of its design extraction")
