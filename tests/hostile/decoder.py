"""Decodes the corpus in a process of its own: `python -m tests.hostile.decoder` prints one JSON line per file.

The process has little room for memory and an alarm for each file, so that what a file does to it is seen from outside:
a crash, a hang or a bomb ends it, and the file it died of is the one without a line.
"""

import faulthandler
import json
import resource
import time
import traceback
from pathlib import Path
from typing import Any

from shared.errors import SourceNotAnImage, SourceTooLarge
from tests.hostile.building import Case, Right
from tests.hostile.corpus import corpus
from worker.images import Picture, decode

PIXEL_LIMIT = 64_000_000
#: Longest that one file may take (s): far above the slowest, for busy machines.
HANG_S = 30
#: Address space beyond what the process has when it begins (bytes).
ROOM = 3 * 2**30


def outcome_of(case: Case) -> dict[str, Any]:
    """What became of a file: a code, a picture (with `wrong` when it is not the right one), or an exception."""
    try:
        picture = decode(case.data, pixel_limit=PIXEL_LIMIT)
    except (SourceNotAnImage, SourceTooLarge) as exc:
        return {"code": exc.code, "detail": exc.message[:300]}
    except BaseException:
        return {"raised": traceback.format_exc()[-2000:]}
    right = case.outcome if isinstance(case.outcome, Right) else None
    return {"size": [picture.width, picture.height], "wrong": None if right is None else difference(picture, right)}


def difference(picture: Picture, right: Right) -> str | None:
    """How a picture is not the right one, or None."""
    if (picture.width, picture.height) != right.size:
        return f"{picture.width}x{picture.height} instead of {right.size}"
    if picture.rgb.shape != (picture.height, picture.width, 3) or str(picture.rgb.dtype) != "uint8":
        return f"an array of {picture.rgb.dtype} {picture.rgb.shape}"
    if right.quarters is None:
        return None
    for place, colour in zip(("top left", "top right", "bottom left", "bottom right"), right.quarters, strict=True):
        y = picture.height // 4 if "top" in place else (3 * picture.height) // 4
        x = picture.width // 4 if "left" in place else (3 * picture.width) // 4
        alpha = 255 if picture.alpha is None else int(picture.alpha[y, x])
        found = (*map(int, picture.rgb[y, x]), alpha)
        wanted = colour if len(colour) == 4 else (*colour, 255)
        if max(abs(a - b) for a, b in zip(found, wanted, strict=True)) > right.tolerance:
            return f"{place} is {found} instead of {wanted}"
    return None


def peak_bytes() -> int:
    """Most resident memory since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    """Begin a new measurement; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def main() -> None:
    faulthandler.enable()
    cases = corpus()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in cases:
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        before, started = forget_peak(), time.perf_counter()
        outcome = outcome_of(case)
        seconds, peak = time.perf_counter() - started, peak_bytes() - before
        print(json.dumps({"name": case.name, "seconds": seconds, "peak_bytes": peak, **outcome}), flush=True)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
