"""How well the two checks around design extraction decide: `python -m benchmarks.extraction [--every 1]`.

1. Which pictures are worth a paid call: photographs of prints against cut-outs and flat artwork, on the held-out
   pictures, the samples and drawn mock-ups.
2. Which answers are redrawn: well extracted designs against designs changed in known ways (benchmarks/mockups.py).

Prints both tables and the times. The thresholds were chosen on other seeds than those measured here; the held-out
pictures and samples were seen when SHADED_SHARE was chosen.
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections import defaultdict

import numpy as np
from PIL import Image

from benchmarks.mockups import (
    FLAT_KINDS,
    HELDOUT,
    REDRAWN,
    SAMPLES,
    Field,
    Pixels,
    answer,
    load_designs,
    mockup,
    redrawn,
)
from worker.images import decode
from worker.images.artwork import look_at
from worker.images.register import register
from worker.images.similarity import REDRAWN_BELOW

_SEED = 90_000
_GROUNDS = ("white", "plain", "gradient", "busy")
_PIXELS = 10**8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every n-th design only")
    every = parser.parse_args().every
    print(json.dumps({"looks": _looks(every), "answers": _answers(every)}))
    return 0


def _looks(every: int) -> dict[str, object]:
    """The confusion table of the check before a call."""
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    seconds = []

    def look(truth: str, kind: str, data: bytes) -> None:
        picture = decode(data, pixel_limit=_PIXELS)
        started = time.perf_counter()
        rows[truth, kind].append(look_at(picture).kind)
        seconds.append(time.perf_counter() - started)

    for path in sorted(HELDOUT.glob("*.jpg")):
        kind = path.stem.split("_")[1]
        look("flat_artwork" if kind in FLAT_KINDS else "photo", f"held-out, {kind}", path.read_bytes())
    for name in ("front.png", "back.jpg"):
        look("photo", f"sample {name}", (SAMPLES / name).read_bytes())
    for number, design in enumerate(load_designs()[::every]):
        for turn, ground in enumerate(_GROUNDS):
            look("photo", f"mock-up, {ground} ground", mockup(design, _SEED + 10 * number + turn, ground))
        look("photo", "mock-up, close up", mockup(design, _SEED + 10 * number + 5, close_up=True))
        look("flat_artwork", "design on a plain ground", answer(design, _SEED + number))
        look("cutout", "transparent PNG", _cutout(design.rgb, design.alpha))
    print(f"{'kind':28} {'is':13} {'cutout':>7} {'flat':>7} {'photo':>7}")
    for (truth, kind), found in rows.items():
        counts = [found.count(name) for name in ("cutout", "flat_artwork", "photo")]
        print(f"{kind:28} {truth:13} {counts[0]:7} {counts[1]:7} {counts[2]:7}")
    paid = [name == "photo" for (truth, _), found in rows.items() if truth != "photo" for name in found]
    missed = [name != "photo" for (truth, _), found in rows.items() if truth == "photo" for name in found]
    print(f"called in vain: {sum(paid)} of {len(paid)}; photographs not extracted: {sum(missed)} of {len(missed)}")
    print(f"median time {statistics.median(seconds) * 1000:.1f} ms\n")
    return {"in_vain": [sum(paid), len(paid)], "missed": [sum(missed), len(missed)]}


def _cutout(rgb: Pixels, alpha: Field) -> bytes:
    padded = np.zeros((rgb.shape[0] + 20, rgb.shape[1] + 20, 4), np.uint8)
    padded[10:-10, 10:-10] = np.dstack((rgb, (alpha * 255).astype(np.uint8)))
    file = io.BytesIO()
    Image.fromarray(padded).save(file, "PNG")
    return file.getvalue()


def _answers(every: int) -> dict[str, object]:
    """Scores of the check after a call."""
    designs = load_designs()
    scores: dict[str, list[float]] = defaultdict(list)
    seconds = []
    for number, design in list(enumerate(designs))[::every]:
        seed = _SEED + number
        photo = mockup(design, seed, _GROUNDS[number % 4], close_up=number % 3 == 0)
        other = designs[(number + 11) % len(designs)]
        answers = {"well extracted": answer(design, seed)}
        answers |= {kind: redrawn(design, other, kind, seed) for kind in REDRAWN}
        original = decode(photo, pixel_limit=_PIXELS).rgb
        for kind, data in answers.items():
            pixels = decode(data, pixel_limit=_PIXELS).rgb
            started = time.perf_counter()
            scores[kind].append(register(pixels, original).score)
            seconds.append(time.perf_counter() - started)
    print(f"{'answer':16} {'p10':>6} {'median':>7} {'p90':>6}   flagged as redrawn (score below {REDRAWN_BELOW})")
    flagged = {}
    for kind, found in scores.items():
        low, middle, high = np.percentile(found, (10, 50, 90))
        flagged[kind] = [sum(score < REDRAWN_BELOW for score in found), len(found)]
        print(f"{kind:16} {low:6.2f} {middle:7.2f} {high:6.2f}   {flagged[kind][0]} of {flagged[kind][1]}")
    print(f"median time {statistics.median(seconds) * 1000:.0f} ms")
    return {"flagged": flagged}


if __name__ == "__main__":
    sys.exit(main())
