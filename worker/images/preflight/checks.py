"""The checks of a cutout's box, resolution, soft areas, islands, edges and borders.

Sources: 12 x 16 in print area and at least 150 dpi: Printful, "Everything you need to know to prepare the perfect print
file" (https://www.printful.com/blog/everything-you-need-to-know-to-prepare-the-perfect-printfile/); 300 dpi, no fades
to nothing: DTF Michigan, "Artwork guidelines" (https://dtfmichigan.com/artwork-guidelines). The halo score is ours; its
definition is in `halo`.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt

from worker.images.preflight.planes import Plane, as_plane, at_least, components, grown, pooled, shrunk, square
from worker.images.preflight.report import Check, Details, Level, PrintSize
from worker.images.preflight.strokes import INSIDE, LINE_MM
from worker.images.print_spec import AlphaMode

#: From 200 dpi on, fabric hides the difference (ours); below 150, printers refuse.
DPI_GOOD, DPI_MINIMUM = 200.0, 150.0
#: Share of the visible box's sides that the art's outline (alpha >= INSIDE) must fill, or haze is around it.
HAZE_WARN = 0.95
#: Alpha from which a pixel counts as solid.
SOLID = 250
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
#: Small islands whose exact size is looked up at full size; dust beyond that is counted by its size on the copy.
_EXACT_ISLANDS = 5_000
#: Soft pixels farther than this from any solid one are a fade, not an edge, in pixels: an edge enlarged from 1024 px to
#: 5400 px is up to 16 px wide.
FADE_PX = 16


def nothing_left() -> tuple[Check, ...]:
    """The checks of an empty cutout: one failure, and nothing to measure for the rest."""
    names = ("art_box", "coverage", "resolution", "soft_pixels", "islands", "thinnest_line", "thinnest_gap", "halo")
    empty = Check("coverage", "fail", 0.0, "Nothing is left of the picture, so nothing would print; use another model.")
    rest = "Not measured, because the cutout is empty."
    return tuple(empty if name == "coverage" else Check(name, "ok", None, rest) for name in (*names, "border"))


def art_box(
    box: tuple[int, ...], outline: tuple[int, ...], width: int, height: int, print_alpha: AlphaMode = "soft"
) -> Check:
    """value: [left, top, right, bottom] of all pixels that are not wholly transparent; right and bottom excluded.

    `box` and `outline` are (left, top, width, height) of the pixels with alpha >= 1 and >= INSIDE. Haze makes the first
    larger, and is printed as a faint box around the art; a print that is cut hard or halftoned has no haze.
    """
    w, h = box[2:]
    details: Details = {"outline": _corners(outline)}
    if print_alpha == "soft" and (outline[2] < HAZE_WARN * w or outline[3] < HAZE_WARN * h):
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


def coverage(share: float, source_alpha: bool) -> Check:
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


def resolution(w: int, size: PrintSize) -> Check:
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


def soft_pixels(alpha: Plane, source_alpha: bool, print_alpha: AlphaMode = "soft") -> Check:
    """value: share of the visible pixels that are soft and farther than EDGE_PX from any solid one.

    Soft is 0 < alpha < SOLID; the distance is the larger of both axes. So a 1-2 px antialiased edge comes to 0, and of
    a wide ramp, a glow or a veil nearly all counts. A halftone prints them as they are meant, a hard cut ends them.
    """
    visible = cv2.countNonZero(alpha)
    solid = at_least(alpha, SOLID)
    soft = visible - cv2.countNonZero(solid)
    edge = cv2.countNonZero(cv2.bitwise_and(alpha, grown(solid, EDGE_PX))) - (visible - soft)
    share = (soft - edge) / visible
    level: Level = "ok" if share <= SOFT_WARN else "warn" if share <= SOFT_FAIL else "fail"
    areas = f"{share:.1%} of the visible pixels are semi-transparent areas, not just edges; "
    if level == "ok":
        message = f"Edges are crisp: {share:.1%} of the visible pixels are semi-transparent beyond the thin edge."
    elif print_alpha == "halftone":
        level, message = "ok", areas + "the halftone prints them as dots of full ink."
    elif print_alpha == "hard":
        level = "warn"
        message = areas + "the hard cut ends them in a line, so halftone them where they are meant to fade."
    else:
        message = areas + "the white underbase shows through them as speckle or haze, so "
        message += (
            "halftone the fades that came with the file or make them solid."
            if source_alpha
            else "harden the alpha or halftone intended fades."
        )
    return Check("soft_pixels", level, share, message, {"semi_transparent_share": soft / visible})


def islands(alpha: Plane, size: PrintSize) -> Check:
    """value: [islands, specks]: separate pieces of visible art, and those of at most LINE_MM (at least 1 px).

    The size is the longer side of a piece's box; pieces touch by sides or corners. Counted on a copy in which each
    pixel is the largest of its block, so pieces less than a block apart (2 px on 4500x5400, a quarter of the narrowest
    printable gap) count as one; a small piece is then measured at full size.
    """
    coarse, block = pooled(alpha)
    _, boxes, areas = components(at_least(coarse, 1))
    boxes = boxes * block
    limit = max(1.0, size.px(LINE_MM))
    sides = boxes[:, 2:].max(axis=1)
    unsure = np.flatnonzero((sides > limit) & (sides <= limit + 2 * block))[:_EXACT_ISLANDS]
    if block > 1:
        for index in unsure:
            x, y, w, h = (int(value) for value in boxes[index])
            sides[index] = max(cv2.boundingRect(alpha[y : y + h, x : x + w])[2:])
    specks = int((sides <= limit).sum())
    islands = len(areas)
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


def halo(rgba: npt.NDArray[np.uint8], alpha: Plane, print_alpha: AlphaMode = "soft") -> Check:
    """value: [on black, on white]: how much the rim stands out against the art beside it, 0..1. Definition, ours:

    - interior: solid pixels (alpha >= SOLID) that stay when the solid art shrinks by RIM_PX;
    - rim: visible pixels that are not interior, at most REACH_PX from an interior pixel (larger of both axes);
    - Y: Rec. 601 luma 0..1; a rim pixel on a backdrop B shows C = alpha Y + (1 - alpha) B;
    - hi, lo: largest and smallest interior Y within REACH_PX of it.
    On black the score is the mean over the rim of max(0, C - hi), on white of max(0, lo - C).

    A clean edge runs between art and backdrop and never leaves that range, whatever its alpha, so it scores 0. White
    left in the edge of dark art is brighter than both (black art, linear edge, nothing cleaned: alpha (1 - alpha)).

    Where a halftone is asked for, fades are meant and may have any colour: the rim leaves out what is next to one.
    """
    solid = at_least(alpha, SOLID)
    interior = shrunk(solid, square(RIM_PX))
    rim = as_plane(cv2.subtract(cv2.bitwise_and(at_least(alpha, 1), grown(interior, REACH_PX)), interior))
    if print_alpha == "halftone":
        fade = cv2.subtract(at_least(alpha, 1), grown(solid, FADE_PX))
        rim = as_plane(cv2.subtract(rim, grown(as_plane(fade), FADE_PX + REACH_PX)))
    count = cv2.countNonZero(rim)
    if not count:
        message = "Not measured, because there is no solid art with an edge to compare."
        return Check("halo", "ok", None, message, {"rim_px": 0})
    luma = as_plane(cv2.cvtColor(rgba, cv2.COLOR_RGBA2GRAY))
    on_black = as_plane(cv2.multiply(luma, alpha, scale=1 / 255))
    on_white = as_plane(cv2.add(on_black, cv2.bitwise_not(alpha)))
    brightest = grown(as_plane(cv2.bitwise_and(luma, interior)), REACH_PX)
    darkest = as_plane(cv2.erode(cv2.bitwise_or(luma, cv2.bitwise_not(interior)), square(REACH_PX)))
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


def border(alpha: Plane) -> Check:
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
