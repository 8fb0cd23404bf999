"""Enclosed holes: lettering loses them, many-coloured art keeps its white."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from tests.scans import SCANS, Scan, scanned
from worker.images import Picture
from worker.images.holes import punch_holes

Array = np.ndarray[Any, Any]


def lettering(ink: tuple[int, int, int], paper: tuple[int, int, int]) -> tuple[Array, Array]:
    """A word with counters, antialiased, and its true alpha in 0..1."""
    alpha = Image.new("L", (640, 240))
    ImageDraw.Draw(alpha).text((30, 20), "BOARD 8", fill=255, font=ImageFont.load_default(140))
    a = np.asarray(alpha, np.float32)[..., None] / 255
    return (a * ink + (1 - a) * paper).round().astype(np.uint8), a[..., 0]


def filled(alpha: Array) -> Array:
    """The silhouette a network finds: every counter filled."""
    paper = (alpha <= 0.5).astype(np.uint8)
    outside = cv2.connectedComponents(paper, connectivity=4)[1]
    enclosed = (outside != outside[0, 0]) & (paper == 1)
    return np.where(enclosed, 1, alpha).astype(np.float32)


@pytest.mark.parametrize("ink", [(20, 20, 20), (200, 30, 60), (30, 60, 200)])
@pytest.mark.parametrize("paper", [(255, 255, 255), (240, 230, 200)])
def test_the_counters_of_letters_become_holes(ink: tuple[int, int, int], paper: tuple[int, int, int]) -> None:
    rgb, truth = lettering(ink, paper)
    before = filled(truth)
    found = punch_holes(Picture(rgb, None), before)
    assert found.flat
    assert found.count == 8  # B 2, O 1, A 1, R 1, D 1, 8 2
    assert np.abs(before - truth).mean() > 0.01
    assert np.abs(found.mask - truth).mean() < 0.003


def test_art_on_a_busy_background_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)
    mask = np.ones((80, 90), np.float32)
    found = punch_holes(Picture(rgb, None), mask)
    assert not found.flat
    assert found.mask is mask


def test_a_transparent_source_is_left_alone() -> None:
    rgb, truth = lettering((0, 0, 0), (255, 255, 255))
    alpha = (truth * 255).astype(np.uint8)
    assert punch_holes(Picture(rgb, alpha), filled(truth)).count == 0


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("ink", [(20, 20, 20), (200, 30, 60)])
def test_letters_on_real_paper_lose_their_counters_and_keep_their_ink(ink: tuple[int, int, int], scan: Scan) -> None:
    rgb, truth = lettering(ink, (255, 255, 255))
    before = filled(truth)
    found = punch_holes(Picture(scanned(rgb, scan), None), before)
    counters = (before > 0.5) & (truth < 0.5)
    assert found.count == 8
    assert found.mask[counters].mean() < 0.08  # what is left is their antialiased rim
    assert found.mask[truth > 0.98].mean() > 0.97
    assert np.abs(found.mask - truth).mean() < 0.1 * np.abs(before - truth).mean()


def bear() -> tuple[Array, Array]:
    """An outlined drawing of one ink with a white body, and its true mask: white pupils in black eyes in the body."""
    image = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(image)
    for box, fill in (
        ((40, 40, 360, 360), "black"),
        ((50, 50, 350, 350), "white"),
        ((100, 120, 172, 208), "black"),
        ((228, 120, 300, 208), "black"),
        ((128, 152, 160, 188), "white"),
        ((256, 152, 288, 188), "white"),
    ):
        draw.ellipse(box, fill=fill)
    mask = (np.hypot(*(np.mgrid[0:400, 0:400] - 200)) < 160).astype(np.float32)
    return np.array(image), mask


def eye() -> tuple[Array, Array]:
    """White inside art of several colours."""
    image = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 360, 360), fill="#e87020")
    draw.rectangle((90, 220, 310, 300), fill="#702080")
    draw.ellipse((120, 120, 190, 200), fill="white")
    draw.rectangle((150, 240, 250, 270), fill="white")
    mask = (np.hypot(*(np.mgrid[0:400, 0:400] - 200)) < 160).astype(np.float32)
    return np.array(image), mask


def test_a_piece_the_model_itself_doubts_is_a_hole_in_any_art() -> None:
    rgb, mask = eye()
    mask[118:202, 118:192] = 0.2
    found = punch_holes(Picture(rgb, None), mask)
    assert found.count == 1
    assert not found.mask[150:170, 145:165].any()
    assert found.mask[255, 200] == 1


@pytest.mark.parametrize("scan", [None, *SCANS.values()], ids=["export", *SCANS])
@pytest.mark.parametrize("drawing", [bear, eye])
def test_white_inside_a_drawing_stays_on_any_paper(drawing: Any, scan: Scan | None) -> None:
    rgb, mask = drawing()
    found = punch_holes(Picture(rgb if scan is None else scanned(rgb, scan), None), mask)
    assert found.flat
    assert (found.mask == mask).all()


def test_a_hole_inside_a_hole_is_found() -> None:
    """A bold ring with a letter in it: the ring's inside is empty, and so is the letter's."""
    image = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 360, 360), fill="black")
    draw.ellipse((90, 90, 310, 310), fill="white")
    draw.ellipse((150, 150, 250, 250), fill="black")
    draw.ellipse((175, 175, 225, 225), fill="white")
    mask = (np.hypot(*(np.mgrid[0:400, 0:400] - 200)) < 160).astype(np.float32)
    found = punch_holes(Picture(np.array(image), None), mask)
    assert found.count == 2
    assert not found.mask[200, 200]
    assert not found.mask[200, 110]
    assert found.mask[200, 160] == 1


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_any_picture_gives_a_mask_that_is_nowhere_larger(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rgb = np.full((height, width, 3), 255, np.uint8)
    rgb[rng.random((height, width)) < 0.3] = rng.integers(0, 256, 3)
    mask = rng.random((height, width), dtype=np.float32)
    found = punch_holes(Picture(rgb, None), mask)
    assert found.mask.shape == mask.shape
    assert (found.mask <= mask).all()
