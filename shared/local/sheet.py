"""One page to look at: each side's original beside its cutouts on a checkerboard."""

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_TILE = 440
_GAP = 16
_LABEL = 30
_SQUARE = 14


def write_sheet(path: Path, originals: Mapping[str, Path], cutouts: Mapping[str, bytes]) -> Path:
    """Write a PNG with a row per side: the original, then every cutout named `{side}_{model}`.

    Args:
        path: the file to write.
        originals: side -> picture file.
        cutouts: cell name -> PNG bytes.
    """
    rows = []
    for side, original in originals.items():
        tiles = [(f"{side}: in", Image.open(original).convert("RGBA"))]
        tiles += [
            (name, Image.open(io.BytesIO(data)).convert("RGBA"))
            for name, data in cutouts.items()
            if name.startswith(f"{side}_")
        ]
        rows.append(tiles)
    columns = max(len(tiles) for tiles in rows)
    heights = [max(_fitted(image)[1] for _, image in tiles) for tiles in rows]
    width = columns * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(heights) + len(rows) * (_LABEL + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(18)
    y = _GAP
    for tiles, height in zip(rows, heights, strict=True):
        for column, (label, image) in enumerate(tiles):
            x = _GAP + column * (_TILE + _GAP)
            small = image.resize(_fitted(image), Image.Resampling.LANCZOS)
            board = _checkerboard(small.size)
            board.paste(small, mask=small.getchannel("A"))
            draw.text((x, y), label, fill="#222", font=font)
            sheet.paste(board, (x, y + _LABEL))
        y += height + _LABEL + _GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _fitted(image: Image.Image) -> tuple[int, int]:
    return _TILE, max(1, round(_TILE * image.height / image.width))


def _checkerboard(size: tuple[int, int]) -> Image.Image:
    board = Image.new("RGB", size, "#ffffff")
    draw = ImageDraw.Draw(board)
    for y in range(0, size[1], _SQUARE):
        for x in range((y // _SQUARE % 2) * _SQUARE, size[0], 2 * _SQUARE):
            draw.rectangle((x, y, x + _SQUARE - 1, y + _SQUARE - 1), fill="#d0d0d0")
    return board
