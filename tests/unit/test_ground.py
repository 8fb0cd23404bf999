"""The plain background: found on exports and scans, and nothing else is taken for one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scans import SCANS, Scan, scanned
from worker.images.ground import find_ground

Array = np.ndarray[Any, Any]


def sheet(colour: tuple[int, int, int] = (10, 200, 30), size: tuple[int, int] = (200, 260)) -> Array:
    """Paper of one colour with a black block on it."""
    rgb = np.full((*size, 3), colour, np.uint8)
    rgb[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 0
    return rgb


def test_an_export_has_its_one_colour_exactly() -> None:
    ground = find_ground(sheet())
    assert ground is not None
    assert (ground.colours == (10, 200, 30)).all()
    assert not ground.grainy
    assert (ground.pixels == sheet()).all()


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_a_scan_has_the_colour_of_its_paper_at_every_place(scan: Scan) -> None:
    blank = np.full((200, 260, 3), 255, np.uint8)
    ground = find_ground(scanned(sheet((255, 255, 255)), scan))
    clean = scanned(blank, Scan(light=scan.light, paper=scan.paper, quality=100))
    assert ground is not None
    assert np.abs(ground.colours.astype(int) - clean).mean() < 3
    assert ground.grainy == (scan.grain > 0)


def test_art_that_runs_over_a_little_of_the_border_does_not_bend_the_ground() -> None:
    rgb = sheet((250, 250, 250))
    rgb[:12, 100:130] = (200, 0, 0)
    ground = find_ground(rgb)
    assert ground is not None
    assert np.abs(ground.colours.astype(int) - 250).max() <= 1


def test_art_along_a_whole_side_leaves_no_flat_ground() -> None:
    rgb = sheet((250, 250, 250))
    rgb[:, :30] = (200, 0, 0)
    assert find_ground(rgb) is None


@pytest.mark.parametrize("kind", ["noise", "stripes", "steep"])
def test_patterns_and_steep_gradients_are_no_ground(kind: str) -> None:
    rng = np.random.default_rng(0)
    rgb = {
        "noise": rng.integers(0, 256, (90, 120, 3), dtype=np.uint8),
        "stripes": np.where(np.arange(120)[None, :, None] % 8 < 4, 255, 190).repeat(90, 0).repeat(3, 2),
        "steep": np.linspace(0, 255, 120)[None, :, None].repeat(90, 0).repeat(3, 2),
    }[kind].astype(np.uint8)
    assert find_ground(rgb) is None


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_any_picture_has_a_ground_of_its_size_or_none(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 1 + int(rng.integers(0, 256)), (height, width, 3), dtype=np.uint8)
    ground = find_ground(rgb)
    if ground is not None:
        assert ground.colours.shape == ground.pixels.shape == rgb.shape
