"""The measures of the evaluation on masks whose scores can be told by hand, and the methods it compares with."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data import Sample
from training.evaluate import by_kind, measured
from training.measures import connectivity_error, contour_f, gradient_error, score
from training.pictures import ACROSS, SIDE, kinds_sheet, on_checkerboard, worst_sheet
from training.rivals import RIVALS, flat_key


def square(left: int = 20, side: int = 30, size: int = 80) -> NDArray[np.uint8]:
    """(size, size) alpha of a solid square."""
    alpha = np.zeros((size, size), np.uint8)
    alpha[20 : 20 + side, left : left + side] = 255
    return alpha


def as_mask(alpha: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (alpha / 255).astype(np.float32)


def test_a_right_mask_has_no_error_and_a_wrong_one_all_of_it() -> None:
    alpha = square()
    right, wrong = score(as_mask(alpha), alpha), score(1 - as_mask(alpha), alpha)
    assert right == (0, 1, 1, 1, 1, 0, 0, 0)
    assert (wrong.mae, wrong.iou, wrong.soft_iou) == (1, 0, 0)


def test_overlap_of_a_shifted_square_is_as_counted() -> None:
    found = score(as_mask(square(left=30)), square())  # 20 of 30 columns are shared
    assert found.iou == pytest.approx(20 / 40)
    assert found.soft_iou == pytest.approx(20 / 40)
    assert found.mae == pytest.approx(2 * 10 * 30 / 80**2)


def test_soft_overlap_sees_what_the_threshold_hides() -> None:
    alpha = np.where(square() > 0, 160, 0).astype(np.uint8)
    found = score(as_mask(square()), alpha)
    assert found.iou == 1
    assert found.soft_iou == pytest.approx(160 / 255)


def test_contours_match_within_the_tolerance_only() -> None:
    a, b = square() > 0, square(left=23) > 0
    assert contour_f(a, b, 3) == 1
    assert contour_f(a, b, 1) < 0.7
    nothing = np.zeros_like(a)
    assert contour_f(nothing, nothing, 3) == 1
    assert contour_f(a, nothing, 3) == 0


def test_where_a_mask_runs_into_the_frame_is_no_contour() -> None:
    half = np.zeros((40, 40), bool)
    half[:, :20] = True
    assert contour_f(half, np.ones_like(half), 2) == 0  # a full picture has no contour at all


def test_a_blurred_edge_costs_gradient_error_and_a_shifted_constant_none() -> None:
    sharp = as_mask(square())
    ramp = sharp.copy()
    ramp[20:50, 45:50] = np.linspace(1, 0, 5)
    assert gradient_error(sharp, sharp) == 0
    assert gradient_error(ramp, sharp) > 1
    assert gradient_error(np.full_like(sharp, 0.3), np.full_like(sharp, 0.8)) == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_a_ramp_is_its_slope() -> None:
    ramp = np.tile(np.linspace(0, 1, 101, dtype=np.float32), (60, 1))
    flat = np.zeros_like(ramp)
    inner = gradient_error(ramp[:, 20:80], flat[:, 20:80])
    assert inner == pytest.approx(60 * 60 * 0.01**2, rel=0.1)  # replicated borders are a little flatter


def test_an_island_costs_connectivity_error_by_its_alpha() -> None:
    truth = as_mask(square())
    found = truth.copy()
    found[60:70, 60:70] = 0.5
    assert connectivity_error(truth, truth) == 0
    assert connectivity_error(found, truth) == pytest.approx(100 * 0.5)


def test_scores_are_told_by_art_and_by_ground() -> None:
    picture = np.zeros((80, 80, 3), np.uint8)
    pairs = [Sample(picture, square(left), kind, "flat") for left, kind in ((20, "icon"), (30, "icon"), (20, "glow"))]
    tables = by_kind(pairs, measured(lambda _: as_mask(square()), pairs))
    assert tables["art"]["glow"].iou == 1
    assert tables["art"]["icon"].iou == pytest.approx(0.75)
    assert tables["ground"]["flat"].iou == pytest.approx(2.5 / 3, abs=1e-4)


@pytest.mark.parametrize("name", sorted(RIVALS))
def test_the_classical_methods_cut_a_red_square_from_green_cloth(name: str) -> None:
    rng = np.random.default_rng(0)
    picture = np.full((80, 80, 3), (40, 140, 60), np.uint8)
    picture[square() > 0] = (210, 30, 40)
    noisy = np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
    assert score(RIVALS[name](noisy), square()).iou > 0.97


def test_a_colour_key_knows_no_other_colour_of_the_ground() -> None:
    """Why a key is not enough: the ground's second colour counts as design."""
    picture = np.full((80, 80, 3), 255, np.uint8)
    picture[10:16, 30:50] = (0, 0, 200)
    assert flat_key(picture)[10:16, 30:50].min() == 1


def test_the_sheet_shows_the_worst_first_and_no_more_than_asked(tmp_path: Path) -> None:
    colours = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0))
    pairs = [
        Sample(np.full((80, 80, 3), colour, np.uint8), square(left), "icon", "flat")
        for colour, left in zip(colours, (20, 45, 30, 24), strict=True)
    ]
    scores = measured(lambda _: as_mask(square()), pairs)
    worst_sheet(tmp_path / "worst.png", pairs, scores, lambda _: as_mask(square()), count=2)
    sheet = Image.open(tmp_path / "worst.png").convert("RGB")
    assert sheet.height < 2 * SIDE
    middle = [sheet.getpixel((number * (3 * SIDE + 8) + 40, 60)) for number in range(ACROSS)]
    assert middle[0] == colours[1]
    assert middle[1] == colours[2]
    assert middle[2] == (255, 255, 255)


def test_the_sheet_of_kinds_shows_the_first_picture_of_each(tmp_path: Path) -> None:
    picture = np.full((80, 80, 3), (200, 0, 0), np.uint8)
    other = np.full((80, 80, 3), (0, 200, 0), np.uint8)
    pairs = [Sample(image, square(), kind, "flat") for image, kind in ((picture, "a"), (other, "a"), (picture, "b"))]
    kinds_sheet(tmp_path / "kinds.png", pairs, {"all": lambda _: np.ones((80, 80), np.float32)})
    sheet = Image.open(tmp_path / "kinds.png").convert("RGB")
    assert sheet.getpixel((40, 60)) == (200, 0, 0)
    assert sheet.getpixel((2 * SIDE + 40, 60)) == (200, 0, 0)  # the method kept all of it
    assert sheet.height < 2 * SIDE  # two kinds, side by side


def test_transparent_shows_the_checkerboard_and_opaque_the_picture() -> None:
    picture = np.full((80, 80, 3), (200, 0, 0), np.uint8)
    shown = on_checkerboard(picture, square())
    assert shown[30, 30].tolist() == [200, 0, 0]
    assert shown[0, 0, 0] == shown[0, 0, 1] == shown[0, 0, 2]
    assert shown[0, 0, 0] != shown[0, 15, 0]
