"""Fetch and render the artwork, fonts and photos that the starter weights are trained and tested on.

Everything comes from package registries through their ordinary clients (`npm pack`, `apt-get download`, pip), with the
version pinned, and lands in `training/cache/` (ignored by git). Artwork is rendered once to (N, 320, 320, 4) uint8
arrays, so that the generator in `data.py` only has to map them into memory.

Whole sets are kept out of training: `HELD_OUT` in the table below is never read by `data.training_assets()`.

Run: python -m training.assets
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CACHE = Path(__file__).parent / "cache"
#: Side of a rendered artwork, pixels. A design fills at most the frame of a training picture (256-512 px).
ART_SIZE = 320
#: Longer side of a stored photo, pixels.
PHOTO_SIZE = 1100

TRAIN, HELD_OUT = "train", "heldout"


@dataclass(frozen=True)
class ArtSet:
    """One icon or emoji set: an npm package in Iconify's format."""

    name: str
    package: str
    licence: str
    split: str
    limit: int
    #: One-colour icons: the generator paints them; only their alpha counts.
    mono: bool = False
    #: Icons whose name matches are left out (near copies such as skin tones; sheets and flags that fill a rectangle).
    skip: str = r"skin-tone|-(light|medium|dark)(-|$)|^flag-|blank|square-button"


ART_SETS = (
    ArtSet("noto", "@iconify-json/noto@1.2.9", "Apache-2.0", TRAIN, 1300),
    ArtSet("fluent", "@iconify-json/fluent-emoji@1.2.7", "MIT", TRAIN, 1000),
    ArtSet("fluent-flat", "@iconify-json/fluent-emoji-flat@1.2.6", "MIT", TRAIN, 500),
    ArtSet("fxemoji", "@iconify-json/fxemoji@1.2.2", "Apache-2.0", TRAIN, 700),
    ArtSet("freehand", "@iconify-json/streamline-freehand-color@1.2.2", "CC-BY-4.0", TRAIN, 600),
    ArtSet("flat-color", "@iconify-json/flat-color-icons@1.2.3", "MIT", TRAIN, 250),
    ArtSet("game-icons", "@iconify-json/game-icons@1.2.4", "CC-BY-3.0", TRAIN, 900, mono=True),
    ArtSet("tabler", "@iconify-json/tabler@1.2.41", "MIT", TRAIN, 300, mono=True),
    ArtSet("mdi", "@iconify-json/mdi@1.2.3", "Apache-2.0", TRAIN, 400, mono=True),
    ArtSet("twemoji", "@iconify-json/twemoji@1.2.5", "CC-BY-4.0", HELD_OUT, 700),
    ArtSet("kameleon", "@iconify-json/streamline-kameleon-color@1.2.2", "CC-BY-4.0", HELD_OUT, 40, skip=r"duo"),
    ArtSet("streamline-emojis", "@iconify-json/streamline-emojis@1.2.4", "CC-BY-4.0", HELD_OUT, 300),
)

#: Debian package of public-domain drawings (openclipart.org); these folders are test art, the others training art.
CLIPART_PACKAGE = "openclipart-svg"
CLIPART_HELD_OUT = ("animals/birds", "plants/flowers", "recreation/music", "transportation/vehicles", "food/desserts")
CLIPART_SKIP = (
    "computer/", "shapes/", "special/", "signs_and_symbols/flags", "signs_and_symbols/led", "signs_and_symbols/map",
    "transportation/aiga", "people/stickmen", "recreation/games", "unsorted/",
)  # fmt: skip

#: Debian package of photos; only its CC-BY-4.0 and CC0-1.0 files are used (the others are share-alike).
PHOTO_PACKAGE = "lomiri-wallpapers-16.04"
PHOTO_FILES = {
    "aitzgorri_by_Aitzol_Berasategi.jpg": TRAIN, "friends_by_Aitzol_Berasategi.jpg": TRAIN,
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": TRAIN, "Picture_0B_by_freespace.jpg": TRAIN,
    "Picture_1A_by_freespace.jpg": TRAIN, "seeding_by_Clements_Engelhardt.jpg": TRAIN,
    "umang_by_Abhishek_Mudgal.jpg": TRAIN, "life_by_Aitzol_Berasategi.jpg": HELD_OUT,
    "sunset_by_Aitzol_Berasategi.jpg": HELD_OUT, "Wine_by_Jakkub_Mede.jpg": HELD_OUT,
}  # fmt: skip
#: Photos in the wheel of scikit-image, public domain or CC0 (skimage/data and the docstrings of skimage.data).
SKIMAGE_FILES = {
    "astronaut.png": TRAIN, "chelsea.png": TRAIN, "rocket.jpg": TRAIN, "brick.png": TRAIN, "grass.png": TRAIN,
    "hubble_deep_field.jpg": TRAIN, "coffee.png": HELD_OUT, "gravel.png": HELD_OUT,
}  # fmt: skip

#: OFL-1.1 or Apache-2.0 fonts, version 5.3.0 of @fontsource each.
FONTS = {
    **dict.fromkeys(
        ("bangers", "pacifico", "lobster", "anton", "permanent-marker", "abril-fatface", "fredoka", "alfa-slab-one",
         "creepster", "rubik-mono-one", "playfair-display", "oswald", "satisfy", "black-ops-one", "bungee",
         "great-vibes", "bebas-neue", "chewy", "audiowide", "titan-one", "passion-one", "caveat"), TRAIN),
    **dict.fromkeys(("shrikhand", "luckiest-guy", "righteous", "special-elite", "knewave", "monoton"), HELD_OUT),
}  # fmt: skip
FONT_VERSION = "5.3.0"


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


def render_svg(svg: str, size: int = ART_SIZE) -> NDArray[np.uint8] | None:
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
        member = archive.extractfile("package/icons.json")
        assert member is not None
        data = json.load(member)
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
    paths = []
    for path in sorted(root.rglob("*.svg")):
        folder = str(path.relative_to(root))
        if folder.startswith(CLIPART_SKIP) or path.stat().st_size > 400_000:
            continue
        if folder.startswith(CLIPART_HELD_OUT) == (split == HELD_OUT):
            paths.append(path)
    return paths


def _render_path(path: Path) -> NDArray[np.uint8] | None:
    text = path.read_text("utf-8", errors="replace")
    return render_svg(text)


def _render_named(item: tuple[str, str]) -> NDArray[np.uint8] | None:
    return render_svg(item[1])


def _store(name: str, pictures: Iterator[NDArray[np.uint8] | None], target: Path) -> None:
    kept = [picture for picture in pictures if picture is not None]
    partial = target.with_suffix(".partial.npy")
    np.save(partial, np.stack(kept))
    partial.rename(target)
    print(f"{name}: {len(kept)} artworks -> {target.name}", flush=True)


def build_art(workers: int = 2) -> None:
    """Render every art set into cache/art/{split}_{c|m}_{name}.npy (c: colour, m: one colour)."""
    folder = CACHE / "art"
    folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(workers) as pool:
        for art in ART_SETS:
            target = folder / f"{art.split}_{'m' if art.mono else 'c'}_{art.name}.npy"
            if not target.exists():
                _store(art.name, pool.imap(_render_named, icon_svgs(art), chunksize=16), target)
        for split in (TRAIN, HELD_OUT):
            target = folder / f"{split}_c_clipart.npy"
            if not target.exists():
                _store(f"clipart {split}", pool.imap(_render_path, clipart_paths(split), chunksize=8), target)


def build_fonts() -> None:
    """Unpack one Latin face per font into cache/fonts/{split}_{name}.woff."""
    folder = CACHE / "fonts"
    folder.mkdir(parents=True, exist_ok=True)
    for font, split in FONTS.items():
        target = folder / f"{split}_{font}.woff"
        if target.exists():
            continue
        with tarfile.open(npm_pack(f"@fontsource/{font}@{FONT_VERSION}")) as archive:
            faces = sorted(
                name for name in archive.getnames() if re.search(rf"/{font}-latin-[4-9]00-normal\.woff$", name)
            )
            member = archive.extractfile(faces[-1])  # the boldest
            assert member is not None
            target.write_bytes(member.read())


def build_photos() -> None:
    """Store the photos as cache/photos/{split}_{name}.jpg, at most PHOTO_SIZE px long."""
    import skimage

    folder = CACHE / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    wallpapers = debian_files(PHOTO_PACKAGE) / "usr/share/backgrounds"
    skimage_data = Path(skimage.__file__).parent / "data"
    sources = [(wallpapers / name, split) for name, split in PHOTO_FILES.items()]
    sources += [(skimage_data / name, split) for name, split in SKIMAGE_FILES.items()]
    for path, split in sources:
        target = folder / f"{split}_{path.stem}.jpg"
        if not target.exists():
            picture = Image.open(path).convert("RGB")
            picture.thumbnail((PHOTO_SIZE, PHOTO_SIZE))
            picture.save(target, quality=93)


def main() -> int:
    """Build every cache that is missing."""
    build_fonts()
    build_photos()
    build_art()
    return 0


if __name__ == "__main__":
    sys.exit(main())
