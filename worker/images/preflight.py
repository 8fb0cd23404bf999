"""What a printer would object to in a cutout, measured before anybody prints it.

Every check is a number, a level and one sentence: what it means on the garment, and what to do about it. Sources:

- 12 x 16 in print area and at least 150 dpi: Printful, "Everything you need to know to prepare the perfect print file"
  (https://www.printful.com/blog/everything-you-need-to-know-to-prepare-the-perfect-printfile/).
- lines of at least 1 pt, gaps of at least 2 pt, 300 dpi, no fades to nothing: DTF Michigan, "Artwork guidelines"
  (https://dtfmichigan.com/artwork-guidelines).
- thickness as the largest disc that fits: Hildebrand & Rueegsegger 1997, "A new method for the model-independent
  assessment of thickness in three-dimensional images"; how we count it is in `_thinnest`.
- the halo score is ours; its definition is in `_halo`.

Exact on every pixel: art box, coverage, soft pixels, border, halo, and lines up to 6 px. On a smaller copy, and said so
where it is done: islands (except the size of the small ones) and lines above 6 px.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import cv2
import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.uint8]
Level = Literal["ok", "warn", "fail"]
Details = dict[str, float | list[float] | None]

#: The print area that is assumed when nobody says how wide the print is: 12 x 16 in, the usual one of an adult T-shirt.
#: The usual 4500x5400 canvas is 15x18 in at 300 dpi, wider than that: art that fills it prints at 375 dpi, not 300.
PRINT_AREA_IN = (12.0, 16.0)
#: Printers ask for 300 dpi at the printed size and refuse below 150. From 200 on, fabric hides the difference (ours).
DPI_GOOD, DPI_MINIMUM = 200.0, 150.0
#: Share of the visible box's sides that the art's outline (alpha >= INSIDE) must fill, or haze is around it.
HAZE_WARN = 0.95
#: Thinnest line that prints and holds, 1 pt, and narrowest gap that stays open, 2 pt; in mm.
LINE_MM, GAP_MM = 25.4 / 72, 2 * 25.4 / 72
#: Alpha from which a pixel counts as solid, and from which it is inside the outline of the art.
SOLID, INSIDE = 250, 128
#: A soft pixel this close to a solid one belongs to an ordinary antialiased edge, in pixels.
EDGE_PX = 2
#: Share of the visible pixels that may be soft beyond that edge. Ours: a 2-px-wide excess around a typical design is
#: about 1 %; a drop shadow or glow comes to 10 % and more.
SOFT_WARN, SOFT_FAIL = 0.01, 0.10
#: Halo scores (0..1). Ours, from synthetic discs: true or cleaned edge colours 0.000; uncleaned edges of 1-12 px
#: 0.03-0.09 for black on white, 0.01-0.03 for red on white; a mask 2 px too wide 0.1-0.5.
HALO_WARN, HALO_FAIL = 0.01, 0.10
#: The halo's rim: pixels outside the art shrunk by this much. Art within reach of the rim is what it is compared with.
RIM_PX, REACH_PX = 2, 6
#: Share of the canvas inside the outline below which hardly anything is left, and above which nothing was removed.
NEARLY_EMPTY, NEARLY_FULL, FULL = 0.0005, 0.95, 0.995
#: Share of a border's length on which art may lie before it counts as cut off there.
BORDER_WARN = 0.005
#: Share of the art that may be thinner than LINE_MM before it is more than a detail.
THIN_FAIL = 0.05
#: Connected parts are looked for on a copy of at most about this many pixels: the full size takes 200 ms of labelling.
_POOL_PIXELS = 4_000_000
#: Parts of that copy that are looked at in full size before all of it is.
_CLOSE_LOOKS = 8
#: Small islands whose exact size is looked up at full size; dust beyond that is counted by its size on the copy.
_EXACT_ISLANDS = 5_000
#: Widest line that is measured, in px: 4 mm at 300 dpi.
_WIDEST_PX = 48
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
        width_assumed: nobody gave a width; the art fills PRINT_AREA_IN.
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


def preflight(
    cutout: npt.NDArray[np.uint8],
    *,
    target_width_in: float | None = None,
    dpi: tuple[float, float] | None = None,
    source_alpha: bool = False,
) -> PreflightJson:
    """`inspect_cutout` as JSON-able data."""
    return inspect_cutout(cutout, target_width_in=target_width_in, dpi=dpi, source_alpha=source_alpha).to_json()


def inspect_cutout(
    cutout: npt.NDArray[np.uint8],
    *,
    target_width_in: float | None = None,
    dpi: tuple[float, float] | None = None,
    source_alpha: bool = False,
) -> Report:
    """Measure a cutout against what garment printing needs.

    Args:
        cutout: (H, W, 4) uint8 straight-alpha RGBA on its whole canvas; trimmed art always "touches the border".
        target_width_in: printed width of the art (of its outline, not of the canvas), in inches. None assumes that the
            art fills PRINT_AREA_IN; the resolution then never fails, because the size is only our guess.
        dpi: pixels per inch that the file states. Only reported, because most files state 72 or 300 whatever they hold;
            but where the two differ, pixels are taken to be that much wider than high.
        source_alpha: the source had transparency of its own, so a full or soft mask may be meant.
    Raises:
        ValueError: not an RGBA picture, or a width or resolution that is not a positive number.
    """
    if cutout.dtype != np.uint8 or cutout.ndim != 3 or cutout.shape[2] != 4 or not cutout.size:
        raise ValueError(f"a cutout is (H, W, 4) uint8, not {cutout.dtype} of shape {cutout.shape}")
    for name, number in (("target_width_in", target_width_in), *(("dpi", value) for value in dpi or ())):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {number}; it must be a positive number")
    height, width = cutout.shape[:2]
    alpha = _plane(cv2.extractChannel(cutout, 3))
    left, top, w, h = cv2.boundingRect(alpha)
    if not w:
        return Report(width, height, None, _nothing_left())

    box = (slice(top, top + h), slice(left, left + w))
    art = alpha[box]
    inside = _at_least(art, INSIDE)
    x, y, outline_w, outline_h = cv2.boundingRect(inside)
    if not outline_w:  # only faint pixels
        x, y, outline_w, outline_h = 0, 0, w, h
    size = _print_size(outline_w, outline_h, target_width_in, dpi)
    checks = (
        _art_box((left, top, w, h), (left + x, top + y, outline_w, outline_h), width, height),
        _coverage(cv2.countNonZero(inside) / (width * height), source_alpha),
        _resolution(outline_w, size),
        _soft_pixels(art, source_alpha),
        _islands(art, size),
        _thinnest_line(inside, size),
        _thinnest_gap(inside, size),
        _halo(cutout[box], art),
        _border(alpha),
    )
    return Report(width, height, size, checks)


def _nothing_left() -> tuple[Check, ...]:
    """The checks of an empty cutout: one failure, and nothing to measure for the rest."""
    names = ("art_box", "coverage", "resolution", "soft_pixels", "islands", "thinnest_line", "thinnest_gap", "halo")
    empty = Check("coverage", "fail", 0.0, "Nothing is left of the picture, so nothing would print; use another model.")
    rest = "Not measured, because the cutout is empty."
    return tuple(empty if name == "coverage" else Check(name, "ok", None, rest) for name in (*names, "border"))


def _print_size(w: int, h: int, target_width_in: float | None, dpi: tuple[float, float] | None) -> PrintSize:
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


def _art_box(box: tuple[int, ...], outline: tuple[int, ...], width: int, height: int) -> Check:
    """value: [left, top, right, bottom] of all pixels that are not wholly transparent; right and bottom excluded.

    `box` and `outline` are (left, top, width, height) of the pixels with alpha >= 1 and >= INSIDE. Haze makes the first
    larger, and is printed as a faint box around the art.
    """
    w, h = box[2:]
    details: Details = {"outline": _corners(outline)}
    if outline[2] < HAZE_WARN * w or outline[3] < HAZE_WARN * h:
        message = f"Faint pixels reach far beyond the art ({w} x {h} px around {outline[2]} x {outline[3]} px) and can "
        message += "print as a hazy box; clear them or harden the alpha."
        return Check("art_box", "warn", _corners(box), message, details)
    message = f"The art is {w} x {h} px of a {width} x {height} px canvas; the rest is empty and does not print."
    if (w, h) == (width, height):
        message = f"The art reaches over the whole {width} x {height} px canvas, so check that no background is left."
    return Check("art_box", "ok", _corners(box), message, details)


def _corners(box: tuple[int, ...]) -> list[float]:
    left, top, w, h = box
    return [left, top, left + w, top + h]


def _coverage(share: float, source_alpha: bool) -> Check:
    """value: share of the canvas inside the art's outline (alpha >= INSIDE)."""
    percent = f"{share:.1%}"
    level: Level = "ok"
    message = f"The art covers {percent} of the canvas."
    if share < NEARLY_EMPTY:
        level = "fail" if share == 0 else "warn"
        message = f"Hardly anything is left ({share:.3%} of the canvas); check that the model kept the design."
    elif share > FULL and not source_alpha:
        level = "fail"
        message = f"Nothing was removed ({percent} is kept), so a full rectangle would print; use another model."
    elif share > NEARLY_FULL:
        level = "warn"
        message = f"Nearly everything was kept ({percent}), so check that the background is gone."
    return Check("coverage", level, share, message)


def _resolution(w: int, size: PrintSize) -> Check:
    """value: pixels of the art per printed inch."""
    dpi = size.dpi
    level: Level = "ok" if dpi >= DPI_GOOD else "warn" if dpi >= DPI_MINIMUM or size.width_assumed else "fail"
    where = size.words + (" (assumed: the usual 12 x 16 in print area)" if size.width_assumed else "")
    largest = size.width_in * dpi / DPI_MINIMUM
    if dpi >= DPI_GOOD:
        message = f"At {where} the art has {dpi:.0f} dpi, which prints sharp."
    elif dpi >= DPI_MINIMUM:
        message = f"At {where} the art has {dpi:.0f} dpi, which prints a little soft; 300 dpi is the usual request."
    else:
        message = f"At {where} the art has {dpi:.0f} dpi and would print blurred; print it at most {largest:.1f} in "
        message += f"wide or supply it {math.ceil(w * DPI_MINIMUM / dpi)} px wide."
    sharp_up_to_in = size.width_in * dpi / DPI_GOOD
    details: Details = {"width_in": size.width_in, "sharp_up_to_in": sharp_up_to_in, "stated_in": size.stated_in}
    return Check("resolution", level, dpi, message, details)


def _soft_pixels(alpha: Plane, source_alpha: bool) -> Check:
    """value: share of the visible pixels that are soft and farther than EDGE_PX from any solid one.

    Soft is 0 < alpha < SOLID; the distance is the larger of both axes. So a 1-2 px antialiased edge comes to 0, and of
    a wide ramp, a glow or a veil nearly all counts.
    """
    visible = cv2.countNonZero(alpha)
    solid = _at_least(alpha, SOLID)
    soft = visible - cv2.countNonZero(solid)
    edge = cv2.countNonZero(cv2.bitwise_and(alpha, _grown(solid, EDGE_PX))) - (visible - soft)
    share = (soft - edge) / visible
    level: Level = "ok" if share <= SOFT_WARN else "warn" if share <= SOFT_FAIL else "fail"
    if level == "ok":
        message = f"Edges are crisp: {share:.1%} of the visible pixels are semi-transparent beyond the thin edge."
    else:
        message = f"{share:.1%} of the visible pixels are semi-transparent areas, not just edges; the white underbase "
        message += "shows through them as speckle or haze"
        message += (
            ", so halftone the fades that came with the file or make them solid."
            if source_alpha
            else ", so harden the alpha or halftone intended fades."
        )
    return Check("soft_pixels", level, share, message, {"semi_transparent_share": soft / visible})


def _islands(alpha: Plane, size: PrintSize) -> Check:
    """value: [islands, specks]: separate pieces of visible art, and those of at most LINE_MM (at least 1 px).

    The size is the longer side of a piece's box; pieces touch by sides or corners. Counted on a copy in which each
    pixel is the largest of its block, so pieces less than a block apart (2 px on 4500x5400, a quarter of the narrowest
    printable gap) count as one; a small piece is then measured at full size.
    """
    pooled, block = _pooled(alpha)
    count, _, stats, _ = cv2.connectedComponentsWithStats(_at_least(pooled, 1), connectivity=8)
    boxes = stats[1:, :4] * block  # left, top, width, height; row 0 is the background
    areas = stats[1:, cv2.CC_STAT_AREA]
    limit = max(1.0, size.px(LINE_MM))
    sides = boxes[:, 2:].max(axis=1)
    unsure = np.flatnonzero((sides > limit) & (sides <= limit + 2 * block))[:_EXACT_ISLANDS]
    if block > 1:
        for index in unsure:
            x, y, w, h = (int(value) for value in boxes[index])
            sides[index] = max(cv2.boundingRect(alpha[y : y + h, x : x + w])[2:])
    specks = int((sides <= limit).sum())
    islands = count - 1
    pieces = "The art is one piece" if islands == 1 else f"The art is {islands} separate pieces"
    message = f"{pieces}, none of them a stray speck."
    if specks:
        which = "is a speck" if specks == 1 else "are specks"
        message = f"{pieces}, of which {specks} {which} of at most {size.mm(limit):.2f} mm at {size.words}; such dots "
        message += "print as dirt or fall off, so erase them unless they are meant."
    details: Details = {
        "speck_limit_px": limit,
        "largest_share": float(areas.max() / areas.sum()),
        "smallest_mm": size.mm(float(sides.min())),
    }
    return Check("islands", "warn" if specks else "ok", [islands, specks], message, details)


def _thinnest_line(inside: Plane, size: PrintSize) -> Check:
    """value: [px, mm, pt] of the thinnest line of the art, see `_thinnest`; None when no line is thinner than 48 px."""
    minimum = size.px(LINE_MM)
    px = _thinnest(inside, minimum, _WIDEST_PX)
    if px is None:
        message = f"No line is thinner than {size.mm(_WIDEST_PX):.1f} mm; all will print."
        return Check("thinnest_line", "ok", None, message, {"minimum_px": minimum})
    width = _width_words(px, size)
    details: Details = {"minimum_px": minimum, "thin_share": 0.0}
    if px + 0.5 >= minimum:  # pixels measure to half a pixel
        message = f"The thinnest lines are about {width}, above the {LINE_MM:.2f} mm (1 pt) that prints reliably."
        return Check("thinnest_line", "ok", _px_mm_pt(px, size), message, details)
    details["thin_share"] = share = _thin_share(inside, minimum)
    level: Level = "fail" if share > THIN_FAIL else "warn"
    message = f"The thinnest lines are about {width} at {size.words}, below the {LINE_MM:.2f} mm (1 pt) that holds on "
    message += "fabric; thicken them or print larger."
    return Check("thinnest_line", level, _px_mm_pt(px, size), message, details)


def _thinnest_gap(inside: Plane, size: PrintSize) -> Check:
    """value: [px, mm, pt] of the narrowest gap if it is below GAP_MM, else None."""
    minimum = size.px(GAP_MM)
    limit = min(minimum - 0.5, 2 * _WIDEST_PX)  # bounds the margin where somebody prints a poster on a stamp
    margin = 3 * math.ceil(max(limit, 0)) + 2
    outside = cv2.copyMakeBorder(cv2.bitwise_not(inside), *(margin,) * 4, cv2.BORDER_CONSTANT, value=(255.0,))
    px = _thinnest(_plane(outside), minimum, limit)
    details: Details = {"minimum_px": minimum}
    if px is None or px + 0.5 >= minimum:
        message = f"No gap is narrower than {GAP_MM:.1f} mm (2 pt) at {size.words}; all will stay open."
        return Check("thinnest_gap", "ok", None, message, details)
    message = f"The narrowest gaps in the art are about {_width_words(px, size)} at {size.words}; below {GAP_MM:.1f} "
    message += "mm (2 pt) ink fills them, so widen them or print larger."
    return Check("thinnest_gap", "warn", _px_mm_pt(px, size), message, details)


def _thinnest(shape: Plane, minimum: float, limit: float) -> float | None:
    """Width in px of the thinnest line of a 0/255 shape, or None when none is thinner than `limit` px.

    A place is thinner than k when no disc of diameter k that fits into the shape is centred within k of it; the
    distance forgives corners and the stair-steps of slanted edges. A line is such places hanging together over at least
    3 k, so specks and the tips of spikes are none. The thinnest line is one step below the first k that finds a line.

    Steps are 1 px up to 6 px, then 2 up to 12, 4 up to 24, 8 up to 48, on copies reduced as much. Where `minimum`, the
    width that matters, is 8 px or more, the first copy already is a reduced one: a quarter of the time, steps of 2 px.
    """
    shape, reduction = _reduced(shape, minimum)
    first, previous = 2, 1.0
    while previous < limit and min(shape.shape) > 0:
        level = _at_least(shape, INSIDE)
        for disc in range(first, 7):
            if _has_part(_thin(level, disc), 3 * disc):
                return previous
            previous = float(disc * reduction)
            if previous >= limit:
                return None
        shape, reduction, first = _halved(shape), reduction * 2, 4
    return None


def _thin_share(shape: Plane, minimum: float) -> float:
    """Share of a 0/255 shape that is thinner than `minimum` px."""
    level, reduction = _reduced(shape, minimum)
    level = _at_least(level, INSIDE)
    area = cv2.countNonZero(level) if level.size else 0
    return cv2.countNonZero(_thin(level, max(2, round(minimum / reduction)))) / area if area else 0.0


def _thin(shape: Plane, disc: int) -> Plane:
    """The part of a 0/255 shape that is farther than `disc` from the centres where a disc of that diameter fits."""
    offset = np.arange(disc) - (disc - 1) / 2
    kernel = (np.hypot(offset[:, None], offset) <= disc / 2).astype(np.uint8)
    return _plane(cv2.subtract(shape, _grown(_shrunk(shape, kernel), disc)))


def _has_part(shape: Plane, length: int) -> bool:
    """Is a connected part of a 0/255 plane at least so many px wide or high?"""
    x, y, w, h = cv2.boundingRect(shape)
    if max(w, h) < length or cv2.countNonZero(shape) < length:
        return False
    shape = shape[y : y + h, x : x + w]
    pooled, block = _pooled(shape)
    sides, boxes = _parts(pooled)
    if block == 1:
        return bool(sides.max() >= length)
    # Pooling only joins: no part is longer than its pooled part, and inside the pooled part's box it is whole.
    likely = np.argsort(-sides)[: int((sides * block >= length).sum())]
    if likely.size > _CLOSE_LOOKS:
        likely, rest = likely[:_CLOSE_LOOKS], True
    else:
        rest = False
    for left, top, width, height in boxes[likely] * block:
        if _parts(shape[top : top + height, left : left + width])[0].max() >= length:
            return True
    return rest and bool(_parts(shape)[0].max() >= length)


def _parts(shape: Plane) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Of the connected parts: (n,) longer side and (n, 4) box as left, top, width, height."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(shape, connectivity=8)
    boxes = np.asarray(stats[1:, :4], np.int32)
    return boxes[:, 2:].max(axis=1, initial=0), boxes


def _pooled(plane: Plane) -> tuple[Plane, int]:
    """A copy of at most about _POOL_PIXELS whose pixels are the largest of a block, and the side of that block."""
    block = max(1, math.ceil(math.sqrt(plane.size / _POOL_PIXELS)))
    if block == 1:
        return plane, 1
    return _plane(cv2.dilate(plane, np.ones((block, block), np.uint8), anchor=(0, 0)))[::block, ::block], block


def _halo(rgba: npt.NDArray[np.uint8], alpha: Plane) -> Check:
    """value: [on black, on white]: how much the rim stands out against the art beside it, 0..1. Definition, ours:

    - interior: solid pixels (alpha >= SOLID) that stay when the solid art shrinks by RIM_PX;
    - rim: visible pixels that are not interior, at most REACH_PX from an interior pixel (larger of both axes);
    - Y: Rec. 601 luma 0..1; a rim pixel on a backdrop B shows C = alpha Y + (1 - alpha) B;
    - hi, lo: largest and smallest interior Y within REACH_PX of it.
    On black the score is the mean over the rim of max(0, C - hi), on white of max(0, lo - C).

    A clean edge runs between art and backdrop and never leaves that range, whatever its alpha, so it scores 0. White
    left in the edge of dark art is brighter than both (black art, linear edge, nothing cleaned: alpha (1 - alpha)).
    """
    solid = _at_least(alpha, SOLID)
    interior = _shrunk(solid, _square(RIM_PX))
    rim = _plane(cv2.subtract(cv2.bitwise_and(_at_least(alpha, 1), _grown(interior, REACH_PX)), interior))
    count = cv2.countNonZero(rim)
    if not count:
        message = "Not measured, because there is no solid art with an edge to compare."
        return Check("halo", "ok", None, message, {"rim_px": 0})
    luma = _plane(cv2.cvtColor(rgba, cv2.COLOR_RGBA2GRAY))
    on_black = _plane(cv2.multiply(luma, alpha, scale=1 / 255))
    on_white = _plane(cv2.add(on_black, cv2.bitwise_not(alpha)))
    brightest = _grown(_plane(cv2.bitwise_and(luma, interior)), REACH_PX)
    darkest = _plane(cv2.erode(cv2.bitwise_or(luma, cv2.bitwise_not(interior)), _square(REACH_PX)))
    black = cv2.mean(cv2.subtract(on_black, brightest), mask=rim)[0] / 255  # subtract stops at 0
    white = cv2.mean(cv2.subtract(darkest, on_white), mask=rim)[0] / 255
    worst = max(black, white)
    level: Level = "ok" if worst <= HALO_WARN else "warn" if worst <= HALO_FAIL else "fail"
    message = "The art shows no light rim on dark fabric and no dark rim on light fabric."
    if level != "ok":
        kind, fabric = ("light", "dark") if black >= white else ("dark", "light")
        message = f"A {kind} rim of the old background shows around the art on {fabric} fabric; clean the edge colours "
        message += "or shrink the mask by a pixel or two, unless the art has a fine outline."
    return Check("halo", level, [black, white], message, {"rim_px": count})


def _border(alpha: Plane) -> Check:
    """value: share of the [top, right, bottom, left] border inside the art's outline (alpha >= INSIDE)."""
    edges = (alpha[0], alpha[:, -1], alpha[-1], alpha[:, 0])
    shares = [float((edge >= INSIDE).mean()) for edge in edges]
    cut = [name for name, share in zip(("top", "right", "bottom", "left"), shares, strict=True) if share > BORDER_WARN]
    if not cut:
        return Check("border", "ok", shares, "The art ends inside the picture; nothing is cut off.")
    sides = cut[0] if len(cut) == 1 else f"{', '.join(cut[:-1])} and {cut[-1]}"
    message = f"The art runs into the picture's {sides} border and would end there in a straight line; "
    message += "use a picture with more room around the design."
    return Check("border", "warn", shares, message)


def _at_least(plane: Any, level: int) -> Plane:
    """255 where a plane reaches the level, else 0."""
    return _plane(cv2.threshold(plane, level - 1, 255, cv2.THRESH_BINARY)[1])


def _grown(plane: Plane, radius: int) -> Plane:
    """Each pixel becomes the largest within a square of that radius."""
    return _plane(cv2.dilate(plane, _square(radius)))


def _square(radius: int) -> Plane:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


def _shrunk(plane: Plane, kernel: Plane) -> Plane:
    """Each pixel becomes the smallest under the kernel; beyond the plane everything is 0."""
    return _plane(cv2.erode(plane, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0.0,)))


def _reduced(shape: Plane, width: float) -> tuple[Plane, int]:
    """A copy on which `width` px of the shape are less than 8 px, and how many px of the shape one of its px is."""
    reduction = 1
    while width / reduction >= 8:
        shape, reduction = _halved(shape), reduction * 2
    return shape, reduction


def _halved(plane: Plane) -> Plane:
    """A plane averaged over blocks of 2x2; an odd last row or column is dropped, a single one leaves nothing."""
    h, w = plane.shape[0] // 2, plane.shape[1] // 2
    return _plane(cv2.resize(plane[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA)) if h and w else plane[:0]


def _plane(array: Any) -> Plane:
    """OpenCV's stubs promise any number type; these are all uint8."""
    out: Plane = array
    return out


def _px_mm_pt(px: float, size: PrintSize) -> list[float]:
    return [px, size.mm(px), size.mm(px) / LINE_MM]


def _width_words(px: float, size: PrintSize) -> str:
    return f"{px:.0f} px = {size.mm(px):.2f} mm ({size.mm(px) / LINE_MM:.1f} pt)"


def _rounded(value: float | list[float] | None) -> float | list[float] | None:
    """Numbers short enough to read: 4 decimals, whole numbers as integers."""

    def short(number: float) -> float:
        number = round(float(number), 4)
        return int(number) if number.is_integer() else number

    if value is None:
        return None
    return [short(number) for number in value] if isinstance(value, list) else short(value)
