"""The asset cache in a few small files, for a machine that has a card and no network.

    python -m training.bundle pack FOLDER --part-mib 27     # FOLDER/assets-0.zip, assets-1.zip, ...
    python -m training.bundle unpack FOLDER/assets-*.zip    # -> training/cache, or TRAINING_CACHE

8 GB of rendered art become about 50 MB: colour art as WebP of high quality, one-colour art as its alpha without loss.
One split only (`train`), so that the pictures of the test set cannot travel along.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.assets import CACHE
from training.split import TRAIN

Bytes = NDArray[np.uint8]
#: WebP quality of colour art and JPEG quality of photos, 0..100, and the photos' longer side, pixels.
ART_QUALITY, PHOTO_QUALITY, PHOTO_SIDE = 75, 85, 1200


def packed_art(pixels: Bytes, mono: bool) -> bytes:
    """One (S, S, 4) uint8 drawing as a WebP file; of one-colour art only the alpha, as a grey picture."""
    file = io.BytesIO()
    if mono:
        Image.fromarray(pixels[..., 3]).save(file, "WEBP", lossless=True, method=4)
    else:
        Image.fromarray(pixels).save(file, "WEBP", quality=ART_QUALITY, alpha_quality=95, method=4)
    return file.getvalue()


def unpacked_art(data: bytes, mono: bool) -> Bytes:
    """The (S, S, 4) uint8 drawing of a file that `packed_art` made; one-colour art is black."""
    picture = Image.open(io.BytesIO(data))
    if not mono:
        return np.asarray(picture.convert("RGBA"))
    alpha = np.asarray(picture.convert("L"))
    return np.dstack((np.zeros((*alpha.shape, 3), np.uint8), alpha))


def _is_mono(stem: str) -> bool:
    return stem.split("_")[1] == "m"


def _pack(item: tuple[Path, int]) -> tuple[str, bytes]:
    path, number = item
    return f"art/{path.stem}/{number:05d}.webp", packed_art(np.load(path, mmap_mode="r")[number], _is_mono(path.stem))


def _unpack(item: tuple[str, bytes]) -> tuple[str, Bytes]:
    stem = item[0].split("/")[1]
    return stem, unpacked_art(item[1], _is_mono(stem))


def members(cache: Path, split: str, workers: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of everything that travels: fonts, photos, then drawings of all sets in turn."""
    for path in sorted((cache / "fonts").glob(f"{split}_*.woff")):
        yield f"fonts/{path.name}", path.read_bytes()
    for path in sorted((cache / "photos").glob(f"{split}_*.jpg")):
        picture, file = Image.open(path), io.BytesIO()
        picture.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        picture.save(file, "JPEG", quality=PHOTO_QUALITY)
        yield f"photos/{path.name}", file.getvalue()
    paths = [path for path in sorted((cache / "art").glob(f"{split}_*.npy")) if ".unfinished" not in path.name]
    counts = {path: len(np.load(path, mmap_mode="r")) for path in paths}
    # Spread by number, so that each part has something of every set.
    items = sorted(
        ((path, i) for path in paths for i in range(counts[path])), key=lambda x: (x[1] / counts[x[0]], x[0])
    )
    with multiprocessing.Pool(workers) as pool:
        yield from pool.imap(_pack, items, chunksize=32)


def pack(folder: Path, part_bytes: int, cache: Path = CACHE, split: str = TRAIN, workers: int = 2) -> list[Path]:
    """Write the parts, each of at most about `part_bytes`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    used, archive = 0, None
    try:
        for name, data in members(cache, split, workers):
            if archive is None or used + len(data) > part_bytes:
                if archive is not None:
                    archive.close()
                parts.append(folder / f"assets-{len(parts)}.zip")
                archive, used = zipfile.ZipFile(parts[-1], "w"), 0
            archive.writestr(name, data)
            used += len(data) + 2 * len(name) + 100
    finally:
        if archive is not None:
            archive.close()
    return parts


def unpack(parts: Iterable[Path], cache: Path = CACHE, workers: int = 2) -> None:
    """Fill a cache from parts; each part's drawings become arrays of their own beside the others'."""
    for folder in ("art", "fonts", "photos"):
        (cache / folder).mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(workers) as pool:
        for part in parts:
            with zipfile.ZipFile(part) as archive:
                names = [name for name in archive.namelist() if name.startswith("art/")]
                for name in archive.namelist():
                    if name.startswith(("fonts/", "photos/")):
                        (cache / name.split("/")[0] / Path(name).name).write_bytes(archive.read(name))
                found: dict[str, list[Bytes]] = {}
                for stem, pixels in pool.imap(_unpack, ((name, archive.read(name)) for name in names), chunksize=16):
                    found.setdefault(stem, []).append(pixels)
            for stem, pictures in found.items():
                np.save(cache / "art" / f"{stem}-{part.stem}.npy", np.stack(pictures))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.bundle", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--part-mib", type=float, default=27.0)
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("parts", type=Path, nargs="+")
    for command in (packing, unpacking):
        command.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args(argv)
    if options.command == "pack":
        for path in pack(options.folder, int(options.part_mib * 2**20), workers=options.workers):
            print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    else:
        unpack(options.parts, workers=options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
