"""A preflight report: checks, the size of the print they assume, and both as JSON."""

import math
from dataclasses import dataclass, field
from typing import Literal, TypedDict

Level = Literal["ok", "warn", "fail"]
Details = dict[str, float | list[float] | None]

#: The print area that is assumed when nobody says how wide the print is: 12 x 16 in, the usual one of an adult T-shirt.
#: The usual 4500x5400 canvas is 15x18 in at 300 dpi, wider than that: art that fills it prints at 375 dpi, not 300.
PRINT_AREA_IN = (12.0, 16.0)
#: 1 pt in mm.
POINT_MM = 25.4 / 72
_ORDER: tuple[Level, ...] = ("ok", "warn", "fail")


class CheckJson(TypedDict):
    """One check as JSON; `value` is null when there was nothing to measure."""

    name: str
    level: Level
    value: float | list[float] | None
    message: str
    details: Details


class PrintJson(TypedDict):
    """What the checks assumed about the print."""

    width_in: float
    height_in: float
    dpi: float
    width_assumed: bool


class PreflightJson(TypedDict):
    """The whole report as JSON; `level` is the worst of the checks, `print` null when there is no art."""

    level: Level
    size_px: list[int]
    print: PrintJson | None
    checks: list[CheckJson]


@dataclass(frozen=True)
class Check:
    """One measured property.

    Attributes:
        name: art_box, coverage, resolution, soft_pixels, islands, thinnest_line, thinnest_gap, halo or border.
        value: the headline number or numbers, see the check; None when there was nothing to measure.
        message: what it means for the print and what to do, in one sentence.
        details: further numbers, unit in the name.
    """

    name: str
    level: Level
    value: float | list[float] | None
    message: str
    details: Details = field(default_factory=dict)

    def to_json(self) -> CheckJson:
        return {
            "name": self.name,
            "level": self.level,
            "value": _rounded(self.value),
            "message": self.message,
            "details": {key: _rounded(value) for key, value in self.details.items()},
        }


@dataclass(frozen=True)
class PrintSize:
    """How large the art is printed.

    Attributes:
        width_in, height_in: the art's printed size, in inches.
        dpi: the art's pixels per printed inch (the geometric mean of both axes where they differ).
        width_assumed: nobody said how large the print is; the art fills PRINT_AREA_IN.
        stated_in: width at the resolution that the file states, in inches, or None.
    """

    width_in: float
    height_in: float
    dpi: float
    width_assumed: bool
    stated_in: float | None

    def mm(self, px: float) -> float:
        return px / self.dpi * 25.4

    def px(self, mm: float) -> float:
        return mm / 25.4 * self.dpi

    @property
    def words(self) -> str:
        return f"{self.width_in:.1f} in wide"


@dataclass(frozen=True)
class Report:
    """All checks of one cutout, in a fixed order."""

    width: int
    height: int
    print_size: PrintSize | None
    checks: tuple[Check, ...]

    @property
    def level(self) -> Level:
        return max((check.level for check in self.checks), key=_ORDER.index)

    def to_json(self) -> PreflightJson:
        size = self.print_size
        return {
            "level": self.level,
            "size_px": [self.width, self.height],
            "print": None
            if size is None
            else {
                "width_in": round(size.width_in, 2),
                "height_in": round(size.height_in, 2),
                "dpi": round(size.dpi, 1),
                "width_assumed": size.width_assumed,
            },
            "checks": [check.to_json() for check in self.checks],
        }


def print_size(
    w: int,
    h: int,
    *,
    target_width_in: float | None = None,
    print_dpi: float | None = None,
    dpi: tuple[float, float] | None = None,
) -> PrintSize:
    """How large art of w x h pixels is printed; see `inspect_cutout` for the arguments."""
    if print_dpi is not None:
        return PrintSize(w / print_dpi, h / print_dpi, print_dpi, False, w / dpi[0] if dpi else None)
    tallness = dpi[0] / dpi[1] if dpi else 1.0  # of one pixel
    width_in = target_width_in or min(PRINT_AREA_IN[0], PRINT_AREA_IN[1] * w / (h * tallness))
    horizontal = w / width_in
    return PrintSize(
        width_in=width_in,
        height_in=h * tallness / horizontal,
        dpi=horizontal / math.sqrt(tallness),
        width_assumed=target_width_in is None,
        stated_in=w / dpi[0] if dpi else None,
    )


def _rounded(value: float | list[float] | None) -> float | list[float] | None:
    """Numbers short enough to read: 4 decimals, whole numbers as integers."""

    def short(number: float) -> float:
        number = round(float(number), 4)
        return int(number) if number.is_integer() else number

    if value is None:
        return None
    return [short(number) for number in value] if isinstance(value, list) else short(value)
