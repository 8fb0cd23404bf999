"""Small pictures of everything that is made for eyes and printers, looked at once and kept.

`python -m tests.golden.pictures` makes them anew: look at every one of them before committing.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from tests.scans import SCANS, scanned
from worker.images import Picture, cut_out
from worker.images.holes import punch_holes
from worker.images.opinion import second_opinion
from worker.images.print_spec import PrintSpec
from worker.images.printing import render_print
from worker.images.proofs import flatten, mask_of, proof, thumbnail
from worker.images.sheet import SheetRow, contact_sheet

HERE = Path(__file__).parent
PAPER, SHIRT = (244, 238, 226), "#26324e"
Array = np.ndarray[Any, Any]


def true_art() -> Array:
    """(200, 240, 4) uint8: a ring with a glow, a star, hairlines and a few specks, with its exact alpha."""
    height, width, fine = 200, 240, 8
    colour = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width), np.float32)

    def lay(shape: Array, ink: tuple[int, int, int]) -> None:
        a = cv2.resize(shape, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        over = a + alpha * (1 - a)
        nonzero = np.maximum(over, 1e-6)
        colour[:] = (a[..., None] * np.array(ink, np.float32) + (alpha * (1 - a))[..., None] * colour) / nonzero[
            ..., None
        ]
        alpha[:] = over

    y, x = np.mgrid[0 : height * fine, 0 : width * fine].astype(np.float32) / fine
    r = np.hypot(x - 88, y - 92)
    lay(0.8 * np.clip(1 - (r - 50) / 34, 0, 1) ** 1.5 * (r > 40), (255, 140, 90))
    lay(((r < 52) & (r > 30)).astype(np.float32), (110, 30, 140))
    angle = np.arctan2(y - 70, x - 190)
    lay((np.hypot(x - 190, y - 70) < 24 + 10 * np.cos(5 * angle)).astype(np.float32), (20, 120, 200))
    for row, thick in enumerate((1, 2, 4, 7)):
        lay(((np.abs(y - 150 - 12 * row) < thick / 2) & (x > 60) & (x < 220)).astype(np.float32), (30, 30, 30))
    lay((np.hypot(x - 225, y - 15) < 1.2).astype(np.float32), (200, 0, 0))
    return np.dstack((colour, alpha * 255)).round().clip(0, 255).astype(np.uint8)


def on_paper(art: Array) -> Array:
    """(H, W, 3) uint8: the art printed on plain paper."""
    a = art[..., 3:] / 255
    return np.asarray(a * art[..., :3] + (1 - a) * np.array(PAPER)).round().astype(np.uint8)


def _printed(art: Array, **fields: Any) -> tuple[Array, Array]:
    """On a shirt, and the white plate."""
    spec = PrintSpec(canvas=(300, 260), dpi=150, margin_px=10, underbase=True)
    result = render_print(art, replace(spec, **fields))
    assert result.underbase is not None
    return flatten(result.image, SHIRT), result.underbase


def _sheet(art: Array) -> Array:
    lost = art.copy()
    lost[140:] = 0
    models = {"rmbg": art, "birefnet": lost}
    opinion = second_opinion({name: mask_of(cutout) for name, cutout in models.items()})
    return contact_sheet({"front": SheetRow(on_paper(art), models, opinion, {"rmbg": "warn", "birefnet": "fail"})})


def _holes(scan: str | None) -> Array:
    """Letters whose counters a mask has filled, on a shirt, from an export and from a scan of it."""
    art = np.full((90, 240), 255, np.uint8)
    for number, letter in enumerate("AB80"):
        cv2.putText(art, letter, (12 + 56 * number, 74), cv2.FONT_HERSHEY_SIMPLEX, 2.4, 0, 9, cv2.LINE_AA)
    rgb = np.dstack((art, art, art))
    rgb = rgb if scan is None else scanned(rgb, SCANS[scan])
    outside = cv2.connectedComponents((art > 128).astype(np.uint8), connectivity=4)[1] == 1
    mask = np.where(outside, 1 - art / 255, 1).astype(np.float32)
    picture = Picture(rgb, None)
    return flatten(cut_out(picture, torch.from_numpy(punch_holes(picture, mask).mask)), "#e0c020")


def all_pictures() -> dict[str, Callable[[], Array]]:
    """Name -> how it is made."""
    art = true_art()
    mask = torch.from_numpy(art[..., 3].astype(np.float32) / 255)
    picture = Picture(on_paper(art), None)
    made: dict[str, Callable[[], Array]] = {
        "cutout_clean": lambda: flatten(cut_out(picture, mask), SHIRT),
        "cutout_raw": lambda: flatten(cut_out(picture, mask, clean=False), SHIRT),
        "mask": lambda: mask_of(cut_out(picture, mask)),
        "holes_export": lambda: _holes(None),
        "holes_scan": lambda: _holes("old paper"),
        "thumbnail": lambda: flatten(thumbnail(art, 96), SHIRT),
        "contact_sheet": lambda: _sheet(art),
    }
    for ground in ("black", "white", "heather", "#ff8020"):
        made[f"proof_{ground.strip('#')}"] = lambda ground=ground: proof(art, ground, 160)  # type: ignore[misc]
    for mode in ("soft", "hard", "halftone"):
        made[f"print_{mode}"] = lambda mode=mode: _printed(art, alpha=mode)[0]  # type: ignore[misc]
        made[f"underbase_{mode}"] = lambda mode=mode: _printed(art, alpha=mode)[1]  # type: ignore[misc]
    made["print_shrunk"] = lambda: _printed(art, scale=0.4, position="top-left")[0]
    made["print_enlarged"] = lambda: _printed(art, canvas=(480, 400), allow_upscale=True)[0]
    made["print_trim"] = lambda: _printed(art, canvas=None, alpha="hard", choke_px=2.5)[0]
    return made


def path(name: str) -> Path:
    return HERE / f"{name}.png"


def write() -> None:
    """Make all of them anew."""
    for name, make in all_pictures().items():
        Image.fromarray(make()).save(path(name), optimize=True)
