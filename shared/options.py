"""What a client may ask of a job's pictures: checked by the API, obeyed by the worker.

The plain soft-alpha PNG is the default; every option changes it or adds files beside it.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from shared.urls import check_url

#: Largest side and area of a print canvas: 5400x5400 at 300 dpi is 18 inches square.
CANVAS_SIDE_LIMIT = 12_000
CANVAS_PIXEL_LIMIT = 64_000_000

Position = Literal["center", "top", "bottom", "left", "right", "top-left", "top-right", "bottom-left", "bottom-right"]
Colour = Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def parse_canvas(value: str) -> tuple[int, int] | None:
    """(width, height) in pixels of `4500x5400`; None for `trim`.

    Raises:
        ValueError: neither form, or beyond the limits.
    """
    if value == "trim":
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value)
    if match is None:
        raise ValueError('must be WIDTHxHEIGHT in pixels, for example "4500x5400", or "trim"')
    width, height = int(match[1]), int(match[2])
    if max(width, height) > CANVAS_SIDE_LIMIT or width * height > CANVAS_PIXEL_LIMIT:
        raise ValueError(
            f"must be at most {CANVAS_SIDE_LIMIT} pixels a side and {CANVAS_PIXEL_LIMIT // 10**6} megapixels"
        )
    return width, height


def _check_canvas(value: str) -> str:
    parse_canvas(value)
    return value


def _check_scale(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """One sentence, where pydantic would write one for each kind of value that it may be."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError('must be "fit", "none" or a number of 0.01 to 1') from None


class PrintOptions(_Options):
    """A file ready for the printer, beside the plain cutout."""

    canvas: Annotated[str, AfterValidator(_check_canvas)] = Field(
        "4500x5400", description='Canvas in pixels, WIDTHxHEIGHT; "trim": just the art'
    )
    dpi: int = Field(300, ge=30, le=2400, description="Resolution of the canvas, stored in the file")
    position: Position = Field("center", description="Where on the canvas the art goes")
    scale: Annotated[Literal["fit", "none"] | Annotated[float, Field(ge=0.01, le=1)], WrapValidator(_check_scale)] = (
        Field(
            "fit",
            description="fit: as large as the canvas allows; none: pixel for pixel; 0.01..1: that share of it",
        )
    )
    margin_px: int = Field(0, ge=0, le=3000, description="Free border of the canvas (px)")
    allow_upscale: bool = Field(False, description="Enlarge art beyond its own pixels to fill the canvas; else flagged")
    alpha: Literal["soft", "hard", "halftone"] = Field(
        "soft", description="soft: as cut; hard: every pixel solid or clear; halftone: fades become solid dots"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="hard: alpha from which a pixel is solid")
    choke_px: float | None = Field(
        None, ge=0, le=10, description="Pull edges in by this much (px of the canvas); 1 for hard, else 0"
    )
    halftone_lpi: float = Field(35, ge=10, le=100, description="halftone: lines of dots per inch")
    underbase: bool = Field(False, description="Also a white underbase plate as its own PNG")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        size = parse_canvas(self.canvas)
        if size is not None and 2 * self.margin_px >= min(size):
            raise ValueError(f"margin_px {self.margin_px} leaves nothing of a canvas of {self.canvas}")
        if size is None and not isinstance(self.scale, str):
            raise ValueError('scale as a share needs a canvas, not "trim"')
        if self.alpha == "halftone" and self.halftone_lpi > self.dpi / 3:
            raise ValueError(
                f"halftone_lpi {self.halftone_lpi:g} needs at least 3 pixels a dot: {self.dpi / 3:g} at most"
            )
        return self


#: What a webhook may tell, in the order it happens.
WebhookEvent = Literal[
    "job.started", "cell.done", "job.succeeded", "job.partial", "job.failed", "job.canceled", "job.expired"
]
_FINAL_EVENTS: list[WebhookEvent] = ["job.succeeded", "job.partial", "job.failed", "job.canceled", "job.expired"]


class WebhookOptions(_Options):
    """Where to tell how the job goes on."""

    url: Annotated[str, AfterValidator(lambda value: check_url(value, "http:// or https://"))] = Field(
        description="Address that gets a signed POST per event",
        json_schema_extra={"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"},
    )
    events: list[WebhookEvent] = Field(
        _FINAL_EVENTS, min_length=1, description="Which events to tell; the job's end when left out"
    )


class JobOptions(_Options):
    """What to do with the pictures."""

    models: list[Annotated[str, StringConstraints(max_length=64)]] | None = Field(
        None, min_length=1, description="Models to use, each once; all that the service runs when left out"
    )
    extract: Literal["auto", "always", "never"] | None = Field(
        None,
        description="Extract the printed design with Gemini first. auto: from photographs only; never: nothing is sent "
        "to Google; EXTRACT_DESIGN when left out",
    )
    edges: Literal["clean", "raw"] = Field(
        "clean", description="clean: the old background is taken out of soft edges; raw: the source's own colours"
    )
    holes: Literal["keep", "auto"] = Field(
        "keep",
        description="auto: enclosed holes of art on a flat background (letter counters) become transparent",
    )
    own_alpha: Literal["trust", "cut"] = Field(
        "trust",
        description="trust: art that comes already cut out keeps its own alpha; cut: the models cut that too",
    )
    detail: Literal["normal", "high"] = Field(
        "normal", description="high: a second pass over the art's box, for art that is small in its picture"
    )
    output: Literal["cutout", "mask"] = Field("cutout", description="cutout: RGBA; mask: the alpha as a grey picture")
    format: Literal["png", "webp"] = Field("png", description="File format of the result, lossless both")
    background: Colour | None = Field(None, description="Flatten the cutout onto this colour, #rrggbb")
    proofs: bool = Field(False, description="Small WebP previews on black, white and heather, and a contact sheet")
    proof_background: Colour | None = Field(None, description="One more proof, on this colour, #rrggbb")
    print: PrintOptions | None = Field(None, description="Add files ready for the printer; {} for the defaults")
    webhook: WebhookOptions | None = Field(None, description="Tell an address of yours how the job goes on")
