"""What a print shop wants of a print file, and the numbers that follow from it."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shared.options import CANVAS_PIXEL_LIMIT, CANVAS_SIDE_LIMIT, Position

AlphaMode = Literal["soft", "hard", "halftone"]

#: Largest margin, in pixels; it matters where there is no canvas to measure it against.
MAX_MARGIN = 3_000
#: Diameter below which a halftone dot is left out, in mm. About two printer dots; a smaller one holds no ink, and lone
#: pixels at a fade's end are the stray pixels that print shops complain about. Reasoned, not measured on a printer.
_MIN_DOT_MM = 0.15
#: Screen cells need this many pixels; below, dots are squares and most tones fall together.
_MIN_CELL_PX = 3.0
_INCH_MM = 25.4


@dataclass(frozen=True)
class PrintSpec:
    """What the print shop wants.

    Attributes:
        canvas: (width, height) in pixels; None gives the art itself with the margin around it. 4500x5400 at 300 dpi is
            the usual T-shirt canvas (field notes, section 2).
        dpi: pixels per inch of the canvas, 30..2400.
        trim: crop to the art's bounding box first; specks that will not be printed do not count.
        position: where the art goes inside the margin.
        scale: "fit" fills the canvas inside the margin, a number of 0.01 to 1 fills that fraction of it, "none" keeps
            pixels as they are. Art that is too large for the canvas is shrunk in every case.
        margin_px: free border on all sides, 0 to less than half of the canvas.
        allow_upscale: enlarge beyond the cutout's own pixels where "fit" or a fraction asks for it.
        alpha: "soft" as it is; "hard" 0 or 255; "halftone" 0 or 255 with fades as dots.
        threshold: 0..1, the alpha from which "hard" (and steep edges in "halftone") print.
        choke_px: 0..10, how far outlines are pulled in, in canvas pixels; None is 1 for "hard" and 0 otherwise.
        min_island_mm: 0..2, "hard" and "halftone" drop specks of less area than a disc of this diameter. 0.35 mm (1 pt)
            is the thinnest line that prints (field notes, section 2).
        min_hole_mm: 0..2, likewise for pinholes, which are filled. Deliberately not the 0.7 mm of the smallest gap:
            that would close small lettering.
        halftone_lpi: dots per inch, 10..100, at most dpi / 3. 35: fine line counts gain nothing on cloth
            (screenprintingmag.com, "Choosing halftone line counts for textile applications"), and the coarser the
            screen, the more of a fade has dots that print: from 18 % on they are 0.35 mm wide, at 55 lpi from 45 %.
        halftone_angle_deg: 0..90. 22.5: furthest from the directions of mesh and weave, 0 and 45 degrees (Sefar,
            "Questions about half-tone printing").
        underbase: also make the white plate.
        underbase_choke_px: 0..10, how far white stays inside the colours, in canvas pixels. 2 is the default of Ricoh's
            Ri 3000 (manual, page 99) and OmniPrint's usual value.
    Raises:
        ValueError: a field is out of its range; names the field, the value and the range.
    """

    canvas: tuple[int, int] | None = (4500, 5400)
    dpi: float = 300
    trim: bool = True
    position: Position = "center"
    scale: Literal["fit", "none"] | float = "fit"
    margin_px: int = 0
    allow_upscale: bool = False
    alpha: AlphaMode = "soft"
    threshold: float = 0.5
    choke_px: float | None = None
    min_island_mm: float = 0.35
    min_hole_mm: float = 0.35
    halftone_lpi: float = 35
    halftone_angle_deg: float = 22.5
    underbase: bool = False
    underbase_choke_px: float = 2

    def __post_init__(self) -> None:
        self._check_canvas()
        _one_of("position", self.position, get_args(Position))
        _one_of("alpha", self.alpha, get_args(AlphaMode))
        if self.scale not in ("fit", "none"):
            if not _is_number(self.scale) or not 0.01 <= float(self.scale) <= 1:
                raise ValueError(f'scale is {self.scale!r}; it must be "fit", "none" or a number of 0.01 to 1')
            if self.canvas is None:
                raise ValueError(f"scale is {self.scale!r}, a fraction of the canvas, but canvas is None")
        for name in ("trim", "allow_upscale", "underbase"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        self._check_range("dpi", 30, 2400)
        self._check_range("threshold", 0, 1)
        if self.choke_px is not None:
            self._check_range("choke_px", 0, 10)
        self._check_range("min_island_mm", 0, 2)
        self._check_range("min_hole_mm", 0, 2)
        self._check_range("halftone_lpi", 10, 100)
        if self.alpha == "halftone" and self.halftone_lpi > self.dpi / _MIN_CELL_PX:
            most = self.dpi / _MIN_CELL_PX
            raise ValueError(f"halftone_lpi is {self.halftone_lpi!r}; at {self.dpi:g} dpi it must be 10 to {most:g}")
        self._check_range("halftone_angle_deg", 0, 90)
        self._check_range("underbase_choke_px", 0, 10)

    def _check_canvas(self) -> None:
        limit = f"a width and a height of 1 to {CANVAS_SIDE_LIMIT} px, at most {CANVAS_PIXEL_LIMIT} px together"
        if self.canvas is not None:
            good = isinstance(self.canvas, tuple) and len(self.canvas) == 2 and all(map(_is_whole, self.canvas))
            if not good or not all(1 <= side <= CANVAS_SIDE_LIMIT for side in self.canvas):
                raise ValueError(f"canvas is {self.canvas!r}; it must be None or {limit}")
            if self.canvas[0] * self.canvas[1] > CANVAS_PIXEL_LIMIT:
                raise ValueError(f"canvas is {self.canvas!r}; it must be None or {limit}")
        most = MAX_MARGIN if self.canvas is None else min(MAX_MARGIN, (min(self.canvas) - 1) // 2)
        if not _is_whole(self.margin_px) or not 0 <= self.margin_px <= most:
            raise ValueError(f"margin_px is {self.margin_px!r}; it must be a whole number of 0 to {most} here")

    def _check_range(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not _is_number(value) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}; it must be a number of {low:g} to {high:g}")

    @property
    def choke(self) -> float:
        """How far outlines are pulled in, in canvas pixels, after the default for the alpha mode."""
        if self.choke_px is not None:
            return self.choke_px
        return 1.0 if self.alpha == "hard" else 0.0

    @property
    def level(self) -> int:
        """The lowest 8-bit alpha that leaves ink, 1..255."""
        least = {"soft": 0.0, "hard": self.threshold, "halftone": math.pi / 4 * (self.min_dot_px / self.cell_px) ** 2}
        return min(255, max(1, math.ceil(least[self.alpha] * 255 - 1e-9)))

    @property
    def cell_px(self) -> float:
        """Distance of the halftone dots, in canvas pixels."""
        return self.dpi / self.halftone_lpi

    @property
    def min_dot_px(self) -> float:
        """Diameter of the smallest halftone dot, in canvas pixels."""
        return _MIN_DOT_MM / _INCH_MM * self.dpi

    def area_px(self, diameter_mm: float) -> float:
        """Pixels of the canvas that a disc of a diameter covers."""
        return math.pi / 4 * (diameter_mm / _INCH_MM * self.dpi) ** 2


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
