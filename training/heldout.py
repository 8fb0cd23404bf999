"""Draw the stored test pictures: 240 pairs by kind of art and ground, and the 48 that every run of the tests measures.

    python -m training.heldout       # tests/data/designs/NNN.jpg, NNN_alpha.webp, index.json; tests/data/heldout

Same generator as the training pictures, but art, fonts and photos of the split `test` alone. No picture is chosen by
hand: each is the first of its seed, and the seeds are numbered.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from training.backgrounds import GROUNDS
from training.data import Sample, load_assets, sample
from training.kinds import KINDS
from training.split import TEST

DATA = Path(__file__).parent.parent / "tests" / "data"
TEST_SET, SMALL_SET = DATA / "designs", DATA / "heldout"
#: Pictures of each kind of art on each kind of ground: every cell of the table has some, common grounds have more.
GROUND_QUOTA = {
    "flat": 5, "garment": 4, "mockup_photo": 3, "gradient": 2, "paper": 1, "photo": 1, "wood": 1, "pattern": 1,
}  # fmt: skip
#: What brings 13 kinds x 18 grounds to 240: the kind that is most like customers' pictures, on the common grounds.
EXTRA = ("flat", "flat", "garment", "garment", "mockup_photo", "mockup_photo")
SEED, SMALL_SEED = 7001, 7002
#: Square root of a picture's area, pixels.
SIZES = (320, 384, 448, 512, 640)
#: Pictures of the small set, by ground; their kinds follow the training's shares.
SMALL_QUOTA = {
    "flat": 15, "garment": 10, "mockup_photo": 7, "gradient": 5, "paper": 3, "photo": 3, "wood": 2, "pattern": 3,
}  # fmt: skip


def wanted() -> list[tuple[str, str]]:
    """(kind, ground) of every picture of the test set, in order."""
    pairs = [(kind, ground) for kind in KINDS for ground, count in GROUND_QUOTA.items() for _ in range(count)]
    return pairs + [("layered", ground) for ground in EXTRA]


def read_test_set(folder: Path = TEST_SET) -> Iterator[tuple[str, Sample]]:
    """The stored test pictures one by one: (name, pair).

    Raises:
        FileNotFoundError: the set is not there; it belongs to the repository.
    """
    for entry in json.loads((folder / "index.json").read_text()):
        name = entry["name"]
        image = np.asarray(Image.open(folder / f"{name}.jpg").convert("RGB"))
        alpha = np.asarray(Image.open(folder / f"{name}_alpha.webp").convert("RGB"))[..., 0]
        yield name, Sample(image, np.ascontiguousarray(alpha), entry["kind"], entry["ground"])


def _emptied(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.jpg", "*_alpha.png", "*_alpha.webp"):
        for old in folder.glob(pattern):
            old.unlink()


def _store_image(path: Path, pair: Sample) -> None:
    cv2.imwrite(str(path), pair.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def draw_test_set() -> None:
    """Write the 240 pairs and their index."""
    assets = load_assets(TEST)
    _emptied(TEST_SET)
    index = []
    for number, (kind, ground) in enumerate(wanted()):
        pair = sample(assets, SEED, number, SIZES[number % len(SIZES)], kind, ground)
        name = f"{number:03d}"
        _store_image(TEST_SET / f"{name}.jpg", pair)
        Image.fromarray(pair.alpha).save(TEST_SET / f"{name}_alpha.webp", lossless=True, quality=100, method=6)
        height, width = pair.alpha.shape
        index.append({"name": name, "kind": kind, "ground": ground, "width": width, "height": height})
    lines = ",\n".join(json.dumps(entry) for entry in index)
    (TEST_SET / "index.json").write_text(f"[\n{lines}\n]\n")


def draw_small_set() -> None:
    """Write the 48 pairs that the tests measure."""
    assets = load_assets(TEST)
    _emptied(SMALL_SET)
    grounds = [ground for ground, count in SMALL_QUOTA.items() for _ in range(count)]
    for number, ground in enumerate(grounds, 1):
        pair = sample(assets, SMALL_SEED, number, 384, ground=ground)
        name = f"{number:02d}_{ground}"
        _store_image(SMALL_SET / f"{name}.jpg", pair)
        Image.fromarray(pair.alpha).save(SMALL_SET / f"{name}_alpha.png", optimize=True)


def main() -> int:
    """Draw both sets."""
    assert set(GROUND_QUOTA) == set(SMALL_QUOTA) == set(GROUNDS)
    draw_test_set()
    draw_small_set()
    return 0


if __name__ == "__main__":
    sys.exit(main())
