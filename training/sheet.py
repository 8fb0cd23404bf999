"""Draw a sheet of generated pictures, each beside its alpha, to look at.

python -m training.sheet                        # docs/training-samples.png, 48 pictures of the validation split
python -m training.sheet --split train --seed 5 --out /tmp/sheet.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from training.backgrounds import Bytes
from training.data import Sample, load_assets, sample
from training.split import SPLITS, VALIDATION

TARGET = Path(__file__).parent.parent / "docs" / "training-samples.png"
#: Side of a picture on the sheet, and pairs in a row.
TILE, COLUMNS = 128, 6


def tile(pair: Sample, side: int = TILE) -> Bytes:
    """A picture beside its alpha on dark grey, (side, 2 * side, 3) uint8 RGB."""
    result = np.full((side, 2 * side, 3), 60, np.uint8)
    height, width = pair.alpha.shape
    scale = (side - 4) / max(height, width)
    size = (round(width * scale), round(height * scale))
    for left, pixels in ((0, pair.image), (side, np.repeat(pair.alpha[..., None], 3, axis=2))):
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        result[2 : 2 + size[1], left + 2 : left + 2 + size[0]] = small
    return result


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.sheet", description=__doc__.split("\n")[0])
    parser.add_argument("--split", choices=SPLITS, default=VALIDATION)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    assets = load_assets(options.split)
    tiles = [tile(sample(assets, options.seed, index, 384)) for index in range(options.count)]
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    # A palette of 256 colours: a third of the bytes, and enough to look at.
    Image.fromarray(np.vstack(rows)).quantize(256, dither=Image.Dither.NONE).save(options.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
