"""The contact sheet of a job: every side's original and each model's cutout on every backdrop, with what was found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worker.images.opinion import OpinionJson
from worker.images.picture import Pixels
from worker.images.proofs import BACKGROUNDS, proof, shrink

#: Contact sheet: longest side of a tile, space between tiles, height of a line of text, space between words; in pixels.
_TILE, _GAP, _LINE, _SPACE = 360, 16, 28, 10
_INK, _QUIET, _GOOD, _ALARM, _FRAME = "#1a1a1a", "#666666", "#0a7a2f", "#c02020", "#cccccc"


@dataclass(frozen=True)
class SheetRow:
    """One side of a contact sheet.

    Attributes:
        prepared: what went through the models, (H, W, 3) RGB or (H, W, 4) RGBA uint8 of any size.
        cutouts: model name -> (H, W, 4) uint8 straight RGBA of any size; failed cells are left out.
        opinion: what `second_opinion` says of them; marks the recommended model and boxes what is disputed.
        levels: model name -> level of its preflight.
        original: the side as it came, when `prepared` is the design that was extracted from it; shown beside it.
    """

    prepared: Pixels
    cutouts: Mapping[str, Pixels]
    opinion: OpinionJson | Mapping[str, Any] | None = None
    levels: Mapping[str, str] = field(default_factory=dict)
    original: Pixels | None = None


def contact_sheet(rows: Mapping[str, SheetRow]) -> Pixels:
    """One page to look at: per side the original, and each model's cutout on black, white and heather.

    Args:
        rows: side -> its pictures, at least one side.
    Returns:
        (H, W, 3) uint8 RGB. A block per side: a line of words (agreement, review), then a row of tiles per model. Where
        the models disagree, what they were given is boxed in red. An extracted design stands left of its cutouts, and
        left of it its original.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one side")
    blocks = [_block(side, row) for side, row in rows.items()]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks) + _GAP), "white")
    y = 0
    for block in blocks:
        sheet.paste(block, (0, y))
        y += block.height
    return np.asarray(sheet)


def _block(side: str, row: SheetRow) -> Image.Image:
    """One side of the sheet."""
    given = {"original": _tile(row.prepared)}
    if row.original is not None:
        given = {"original": _tile(row.original), "extracted design": _tile(row.prepared)}
    last = next(reversed(given))
    given[last] = _with_disputes(given[last], row.opinion)
    tiles = {model: shrink(cutout, _TILE) for model, cutout in row.cutouts.items()}
    sizes = [tile.shape[:2] for tile in (*given.values(), *tiles.values())]
    tile_h, tile_w = (max(size[axis] for size in sizes) for axis in (0, 1))
    font, bold = ImageFont.load_default(15), ImageFont.load_default(19)
    heads = [_width([(model, _INK), *_marks(model, row)], font) for model in tiles]
    tile_w = max(tile_w, _TILE // 2, *heads)  # room for the words above it
    columns = len(given) + len(BACKGROUNDS)
    line_h = _LINE + tile_h + _GAP
    height = _GAP + _LINE + max(1, len(tiles)) * line_h
    words, colour = _verdict(row)
    verdict_x = round(_GAP + bold.getlength(side) + _GAP)
    width = max(columns * (tile_w + _GAP) + _GAP, verdict_x + round(font.getlength(words)) + _GAP)
    block = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(block)

    draw.text((_GAP, _GAP), side, fill=_INK, font=bold)
    draw.text((verdict_x, _GAP + 3), words, fill=colour, font=font)

    top = _GAP + _LINE
    for column, (name, tile) in enumerate(given.items()):
        x = _GAP + column * (tile_w + _GAP)
        draw.text((x, top + 4), name, fill=_QUIET, font=font)
        _paste(block, tile, x, top + _LINE)
    for model, tile in tiles.items():
        for column, background in enumerate(BACKGROUNDS, start=len(given)):
            x = _GAP + column * (tile_w + _GAP)
            _paste(block, proof(tile, background, _TILE), x, top + _LINE)
            if column > len(given):
                draw.text((x, top + 4), background, fill=_QUIET, font=font)
        x = _GAP + len(given) * (tile_w + _GAP)
        for text, ink in [(model, _INK), *_marks(model, row)]:
            draw.text((x, top + 4), text, fill=ink, font=font)
            x += round(font.getlength(text)) + _SPACE
        top += line_h
    return block


def _tile(pixels: Pixels) -> Pixels:
    """A picture at the size of a tile, what is transparent on grey."""
    if pixels.ndim == 2 or pixels.shape[2] != 4:
        pixels = np.dstack((pixels, np.full(pixels.shape[:2], 255, np.uint8)))
    return proof(pixels, "#808080", _TILE)


def _width(words: list[tuple[str, str]], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Pixels that words side by side take."""
    return sum(round(font.getlength(text)) + _SPACE for text, _ in words)


def _paste(block: Image.Image, picture: Pixels, x: int, y: int) -> None:
    """Put a picture on the block, framed so that white ones end somewhere."""
    height, width = picture.shape[:2]
    ImageDraw.Draw(block).rectangle((x - 1, y - 1, x + width, y + height), outline=_FRAME)
    block.paste(Image.fromarray(picture), (x, y))


def _verdict(row: SheetRow) -> tuple[str, str]:
    """The words beside the side's name, and their colour."""
    if not row.cutouts:
        return "no cutout", _ALARM
    opinion = row.opinion
    if not opinion:
        return "", _QUIET
    if opinion.get("needs_review"):
        return f"please review: {opinion['review_reason']}", _ALARM
    agreement = opinion.get("agreement")
    return (str(opinion["reason"]) if agreement is None else f"models agree on {agreement:.1%} (IoU)"), _QUIET


def _marks(model: str, row: SheetRow) -> list[tuple[str, str]]:
    """Words after a model's name, with their colours."""
    marks = []
    if row.opinion and len(row.cutouts) > 1 and row.opinion.get("recommended") == model:
        marks.append(("recommended", _GOOD))
    level = row.levels.get(model)
    if level:
        marks.append((f"print check: {level}", _ALARM if level == "fail" else _QUIET))
    return marks


def _with_disputes(picture: Pixels, opinion: OpinionJson | Mapping[str, Any] | None) -> Pixels:
    """A copy with red boxes where the models disagree."""
    out = picture.copy()
    height, width = out.shape[:2]
    for pair in (opinion or {}).get("pairs", ()):
        for region in pair["regions"]:
            left, top, right, bottom = region["box"]
            corners = (round(left * width), round(top * height)), (round(right * width), round(bottom * height))
            cv2.rectangle(out, corners[0], corners[1], (224, 32, 32), 2)
    return out
