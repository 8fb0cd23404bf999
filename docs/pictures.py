"""The README's pictures, made by the running service: `python -m docs.pictures`.

Starts the local stack, sends the sample designs with the options that each picture shows, and writes docs/*.png.
"""

import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from shared.local.client import fetch_outputs, send_job
from shared.local.redis_server import free_port
from shared.local.sheet import write_sheet
from shared.local.stack import LocalStack
from worker.images import cut_out, decode, encode_png
from worker.images.picture import Pixels

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "tests" / "data" / "samples"
FRONT, BACK = SAMPLES / "front.png", SAMPLES / "back.jpg"
#: Where the flame, its glow and some lettering are, on the print canvas and in the design itself, as shares of it.
_DETAIL, _GLOW = (0.1, 0.46, 0.46, 0.84), (0.04, 0.42, 0.5, 0.78)
_SHIRT = (38, 50, 78)
_GAP, _LINE = 12, 40

Box = tuple[float, float, float, float]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "MODEL_PROFILE": "starter", "OUTPUTS_DIR": f"{folder}/outputs"}
        with LocalStack(ROOT, env, host="127.0.0.1", port=free_port(), run_dir=Path(folder)) as stack:
            stack.start()
            reply, _ = send_job(stack.base_url, FRONT, BACK, "readme")
            write_sheet(ROOT / "docs" / "cutouts.png", {"front": FRONT, "back": BACK}, fetch_outputs(reply))
            _contact_sheet(_with_options(stack.base_url, {"proofs": True}))
            _print_modes(stack.base_url)
    _edges()
    return 0


def _with_options(base_url: str, options: dict[str, Any], **sides: bytes) -> dict[str, Any]:
    response = requests.post(
        f"{base_url}/process",
        data={"id": "readme", "options": json.dumps(options)},
        files=sides or {"front": FRONT.read_bytes(), "back": BACK.read_bytes()},
        timeout=180,
    )
    response.raise_for_status()
    reply: dict[str, Any] = response.json()
    return reply


def _fetch(url: str) -> Image.Image:
    response = requests.get(url, timeout=60)
    response.raise_for_status()
    return Image.open(io.BytesIO(response.content))


def _contact_sheet(reply: dict[str, Any]) -> None:
    sheet = _fetch(reply["contact_sheet"]).convert("RGB")
    sheet.thumbnail((1400, 1400), Image.Resampling.LANCZOS)
    sheet.save(ROOT / "docs" / "contact-sheet.png", optimize=True)


def _true_cutout(*, clean: bool) -> Pixels:
    """The back design by its true alpha, glow included, with the colours of its edges clean or raw."""
    alpha = np.asarray(Image.open(SAMPLES / "back_alpha.png").convert("L"), np.float32) / 255
    picture = decode(BACK.read_bytes(), pixel_limit=10_000_000)
    return cut_out(picture, torch.from_numpy(alpha), clean=clean)


def _edges() -> None:
    """Edge colours raw and clean under one mask, the true one, on a shirt's colour."""
    tiles = []
    for words, clean in (("raw: the old paper stays in the glow", False), ("clean (default)", True)):
        image = Image.fromarray(_true_cutout(clean=clean))
        tiles.append((words, Image.alpha_composite(Image.new("RGBA", image.size, (*_SHIRT, 255)), image)))
    _side_by_side(tiles, _GLOW, 480).save(ROOT / "docs" / "edges.png", optimize=True)


def _print_modes(base_url: str) -> None:
    """The same detail soft, hard and halftoned on a shirt's colour, and the white plate under the last."""
    artwork = b"".join(encode_png(_true_cutout(clean=True)))
    tiles = []
    for mode in ("soft", "hard", "halftone"):
        wanted = {"alpha": mode, "canvas": "1500x1800", "dpi": 150, "underbase": True}
        files = _with_options(base_url, {"print": wanted}, back=artwork)["cells"]["back_birefnet"]["files"]
        image = _fetch(files["print"])
        tiles.append((mode, Image.alpha_composite(Image.new("RGBA", image.size, (*_SHIRT, 255)), image)))
    white = _fetch(files["underbase"])
    tiles.append(("halftone: white plate", ImageOps.colorize(white, _SHIRT, "white")))
    _side_by_side(tiles, _DETAIL, 330).save(ROOT / "docs" / "print-modes.png", optimize=True)


def _side_by_side(tiles: list[tuple[str, Image.Image]], detail: Box, tile_w: int) -> Image.Image:
    """The same detail, shares of each picture, under the words for it."""
    sheet = Image.new("RGB", (len(tiles) * (tile_w + _GAP) + _GAP, 2 * tile_w), "white")
    draw = ImageDraw.Draw(sheet)
    bottom = 0
    for number, (words, tile) in enumerate(tiles):
        x = _GAP + number * (tile_w + _GAP)
        width, height = tile.size
        box = (detail[0] * width, detail[1] * height, detail[2] * width, detail[3] * height)
        part = tile.convert("RGB").crop(box)
        part = part.resize((tile_w, round(tile_w * part.height / part.width)), Image.Resampling.LANCZOS)
        draw.text((x, 10), words, fill="#222", font=ImageFont.load_default(18))
        sheet.paste(part, (x, _LINE))
        bottom = _LINE + part.height + _GAP
    return sheet.crop((0, 0, sheet.width, bottom))


if __name__ == "__main__":
    sys.exit(main())
