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

import requests
from PIL import Image, ImageDraw, ImageFont

from shared.local.client import fetch_outputs, send_job
from shared.local.redis_server import free_port
from shared.local.sheet import write_sheet
from shared.local.stack import LocalStack

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "tests" / "data" / "samples"
FRONT, BACK = SAMPLES / "front.png", SAMPLES / "back.jpg"
#: Where the flame and its glow are on the print canvas, (left, top, right, bottom) as shares of it.
_DETAIL = (0.12, 0.44, 0.5, 0.82)
_SHIRT = (38, 50, 78)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "MODEL_PROFILE": "starter", "OUTPUTS_DIR": f"{folder}/outputs"}
        with LocalStack(ROOT, env, host="127.0.0.1", port=free_port(), run_dir=Path(folder)) as stack:
            stack.start()
            reply, _ = send_job(stack.base_url, FRONT, BACK, "readme")
            write_sheet(ROOT / "docs" / "cutouts.png", {"front": FRONT, "back": BACK}, fetch_outputs(reply))
            _contact_sheet(_with_options(stack.base_url, {"proofs": True}))
            _print_modes(stack.base_url)
    return 0


def _with_options(base_url: str, options: dict[str, Any]) -> dict[str, Any]:
    with FRONT.open("rb") as front, BACK.open("rb") as back:
        response = requests.post(
            f"{base_url}/process",
            data={"id": "readme", "options": json.dumps(options)},
            files={"front": front, "back": back},
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


def _print_modes(base_url: str) -> None:
    """The same detail soft, hard and halftoned, side by side on a shirt's colour."""
    tiles = []
    for mode in ("soft", "hard", "halftone"):
        options = {"models": ["birefnet"], "print": {"alpha": mode, "canvas": "1500x1800", "dpi": 150}}
        image = _fetch(_with_options(base_url, options)["cells"]["back_birefnet"]["files"]["print"])
        width, height = image.size
        left, top, right, bottom = _DETAIL
        box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
        shirt = Image.new("RGBA", image.size, (*_SHIRT, 255))
        detail = Image.alpha_composite(shirt, image).crop(box).convert("RGB")
        tiles.append((mode, detail.resize((420, round(420 * detail.height / detail.width)), Image.Resampling.LANCZOS)))
    sheet = Image.new("RGB", (3 * 436 + 16, tiles[0][1].height + 60), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (mode, tile) in enumerate(tiles):
        x = 16 + 436 * number
        draw.text((x, 12), mode, fill="#222", font=ImageFont.load_default(20))
        sheet.paste(tile, (x, 44))
    sheet.save(ROOT / "docs" / "print-modes.png", optimize=True)


if __name__ == "__main__":
    sys.exit(main())
