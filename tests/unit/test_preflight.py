"""Preflight: every check against shapes whose truth is known, and any picture at all."""

import json
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.images import Picture, cut_out
from worker.images.preflight import CheckJson, PreflightJson, inspect_cutout, preflight
from worker.images.preflight.planes import components
from worker.images.preflight.strokes import _has_part

Array = np.ndarray[Any, Any]

NAMES = [
    "art_box",
    "coverage",
    "resolution",
    "soft_pixels",
    "islands",
    "thinnest_line",
    "thinnest_gap",
    "halo",
    "border",
]
RED = (200, 20, 30)


def disc_alpha(size: int, radius: float, soft: float = 1.0) -> Array:
    """(size, size) float 0..1: a centred disc whose edge is a linear ramp `soft` px wide."""
    y, x = np.mgrid[0:size, 0:size] + 0.5
    alpha: Array = np.clip((radius - np.hypot(x - size / 2, y - size / 2)) / soft + 0.5, 0, 1)
    return alpha


def painted(alpha: Array, ink: tuple[int, ...] = RED) -> Array:
    """A cutout of one ink: alpha float 0..1 or uint8."""
    level = alpha if alpha.dtype == np.uint8 else (alpha * 255).round().astype(np.uint8)
    out = np.zeros((*level.shape, 4), np.uint8)
    out[..., :3] = ink
    out[..., 3] = level
    out[level == 0] = 0
    return out


def canvas(height: int = 200, width: int = 240) -> Array:
    return np.zeros((height, width), np.uint8)


def check(report: PreflightJson, name: str) -> CheckJson:
    return next(found for found in report["checks"] if found["name"] == name)


def numbers(report: PreflightJson, name: str) -> list[float]:
    value = check(report, name)["value"]
    assert isinstance(value, list)
    return value


class TestReports:
    @given(
        st.sampled_from([(1, 1), (1, 300), (300, 1), (2, 3), (17, 31), (64, 64)]),
        st.integers(0, 2**32 - 1),
        st.sampled_from(["noise", "empty", "full", "binary", "faint"]),
        st.sampled_from([None, 0.01, 12.0, 1000.0]),
        st.sampled_from([None, (300.0, 300.0), (300.0, 150.0)]),
        st.booleans(),
    )
    @settings(deadline=None, max_examples=120)
    def test_any_picture_gets_every_check_in_order_and_the_worst_level(
        self,
        size: tuple[int, int],
        seed: int,
        kind: str,
        width_in: float | None,
        dpi: tuple[float, float] | None,
        own: bool,
    ) -> None:
        rng = np.random.default_rng(seed)
        cutout = rng.integers(0, 256, (*size, 4), dtype=np.uint8)
        if kind != "noise":
            levels = {"empty": [0], "full": [255], "binary": [0, 255], "faint": [0, 1, 2]}[kind]
            cutout[..., 3] = rng.choice(levels, size)
        report = preflight(cutout, target_width_in=width_in, dpi=dpi, source_alpha=own)
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        assert [found["name"] for found in report["checks"]] == NAMES
        order = ["ok", "warn", "fail"]
        assert report["level"] == max((found["level"] for found in report["checks"]), key=order.index)
        assert all(found["message"].endswith(".") for found in report["checks"])
        for name in ("coverage", "soft_pixels"):
            value = check(report, name)["value"]
            assert value is None or (isinstance(value, float | int) and 0 <= value <= 1)
        if check(report, "halo")["value"] is not None:
            assert all(0 <= score <= 1 for score in numbers(report, "halo"))

    def test_an_empty_cutout_fails_and_measures_nothing_else(self) -> None:
        report = preflight(painted(canvas()))
        assert report["level"] == "fail"
        assert report["print"] is None
        assert [found["name"] for found in report["checks"] if found["level"] == "fail"] == ["coverage"]

    def test_a_picture_from_which_nothing_was_removed_fails(self) -> None:
        full = painted(np.full((50, 60), 255, np.uint8))
        assert check(preflight(full), "coverage")["level"] == "fail"
        assert check(preflight(full, source_alpha=True), "coverage")["level"] == "warn"
        assert check(preflight(full), "art_box")["value"] == [0, 0, 60, 50]

    def test_art_of_faint_pixels_only_fails(self) -> None:
        report = preflight(painted(np.full((50, 60), 40, np.uint8)))
        assert check(report, "coverage")["level"] == "fail"
        assert check(report, "soft_pixels")["value"] == 1

    @pytest.mark.parametrize("picture", [np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4), np.uint8)])
    def test_other_arrays_are_refused(self, picture: Array) -> None:
        with pytest.raises(ValueError, match="cutout"):
            preflight(picture)

    @pytest.mark.parametrize("width_in", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_print_width_that_is_none_is_refused(self, width_in: float) -> None:
        with pytest.raises(ValueError, match="target_width_in"):
            preflight(painted(canvas()), target_width_in=width_in)

    def test_a_view_of_a_larger_picture_is_measured_like_a_copy(self) -> None:
        cutout = painted(disc_alpha(120, 30))[10:110, 5:100]
        assert preflight(cutout) == preflight(cutout.copy())

    def test_the_cutout_is_left_as_it_was(self) -> None:
        cutout = painted(disc_alpha(80, 30, 9))
        before = cutout.copy()
        inspect_cutout(cutout)
        assert (cutout == before).all()


class TestBoxAndResolution:
    def test_a_disc_has_its_diameter_as_box_and_its_area_as_coverage(self) -> None:
        report = preflight(painted(disc_alpha(200, 60)))
        left, top, right, bottom = numbers(report, "art_box")
        assert (right - left, bottom - top) == pytest.approx((120, 120), abs=1)
        assert (left + right, top + bottom) == (200, 200)
        assert check(report, "coverage")["value"] == pytest.approx(np.pi * 60**2 / 200**2, rel=0.005)

    def test_one_faint_pixel_far_away_widens_the_box_but_not_the_print(self) -> None:
        alpha = canvas()
        alpha[50:150, 50:150] = 255
        sharp = preflight(painted(alpha))
        alpha[5, 230] = 1
        hazy = preflight(painted(alpha))
        assert check(hazy, "art_box")["value"] == [50, 5, 231, 150]
        assert check(hazy, "art_box")["level"] == "warn"
        assert hazy["print"] == sharp["print"]

    def test_art_that_fills_the_usual_canvas_prints_at_375_dpi_in_the_assumed_area(self) -> None:
        """4500 px over 12 in; at a tenth of the size."""
        report = preflight(painted(np.full((540, 450), 255, np.uint8)))
        assert check(report, "resolution")["value"] == 37.5
        assert report["print"] == {"width_in": 12, "height_in": 14.4, "dpi": 37.5, "width_assumed": True}

    def test_tall_art_is_assumed_to_fill_the_height(self) -> None:
        report = preflight(painted(np.full((320, 40), 255, np.uint8)))
        assert report["print"] == {"width_in": 2, "height_in": 16, "dpi": 20, "width_assumed": True}

    @pytest.mark.parametrize(("width_in", "level"), [(1.0, "ok"), (1.8, "warn"), (2.5, "fail")])
    def test_resolution_is_judged_at_the_width_that_is_asked_for(self, width_in: float, level: str) -> None:
        alpha = canvas(340, 340)
        alpha[20:320, 20:320] = 255
        found = check(preflight(painted(alpha), target_width_in=width_in), "resolution")
        assert found["value"] == pytest.approx(300 / width_in, abs=0.001)
        assert found["level"] == level

    def test_a_guessed_width_never_fails(self) -> None:
        assert check(preflight(painted(np.full((9, 9), 255, np.uint8))), "resolution")["level"] == "warn"

    def test_the_stated_resolution_is_told_but_not_believed(self) -> None:
        cutout = painted(np.full((54, 45), 255, np.uint8))
        found = check(preflight(cutout, dpi=(300, 300)), "resolution")
        assert found["value"] == 3.75
        assert found["details"]["stated_in"] == 0.15

    def test_pixels_that_are_not_square_count_by_their_shape(self) -> None:
        report = preflight(painted(np.full((50, 100), 255, np.uint8)), target_width_in=1, dpi=(300, 150))
        assert report["print"] is not None
        assert report["print"]["height_in"] == 1
        assert report["print"]["dpi"] == pytest.approx(70.7, abs=0.05)


class TestSoftPixels:
    @pytest.mark.parametrize("soft", [0.01, 1, 2])
    def test_an_ordinary_antialiased_edge_is_no_soft_area(self, soft: float) -> None:
        found = check(preflight(painted(disc_alpha(200, 70, soft))), "soft_pixels")
        assert found["value"] == 0
        assert found["level"] == "ok"

    def test_a_wide_ramp_counts_beyond_its_first_two_pixels(self) -> None:
        """A straight ramp of 20 columns beside 80 solid ones: 18 of 100 columns are soft beyond the edge."""
        alpha = np.zeros((40, 140), np.uint8)
        alpha[:, 20:100] = 255
        alpha[:, 100:120] = np.linspace(240, 10, 20).astype(np.uint8)
        found = check(preflight(painted(alpha)), "soft_pixels")
        assert found["value"] == pytest.approx(0.18)
        assert found["details"]["semi_transparent_share"] == pytest.approx(0.20)
        assert found["level"] == "fail"

    def test_a_veil_within_the_art_counts(self) -> None:
        alpha = canvas()
        alpha[20:180, 20:220] = 255
        alpha[60:100, 60:160] = 128
        share = 36 * 96 / (160 * 200)
        assert check(preflight(painted(alpha)), "soft_pixels")["value"] == pytest.approx(share, abs=1e-4)

    def test_fades_of_a_transparent_source_are_named_so(self) -> None:
        cutout = painted(disc_alpha(100, 30, 30))
        assert "came with the file" in check(preflight(cutout, source_alpha=True), "soft_pixels")["message"]
        assert "came with the file" not in check(preflight(cutout), "soft_pixels")["message"]


class TestPlannedPrints:
    """What the print will do with soft alpha decides whether it is a defect."""

    @staticmethod
    def glow() -> Array:
        """A dark disc in a pink glow: the halo check compares with the disc, the box with its outline."""
        y, x = np.mgrid[0:400, 0:400]
        r = np.hypot(x - 200, y - 200)
        disc, fade = np.clip(80.5 - r, 0, 1), 0.7 * np.clip((160 - r) / 80, 0, 1) ** 1.5
        out = painted(np.maximum(disc, fade))
        out[disc >= fade, :3] = (90, 20, 120)
        out[(disc < fade) & (out[..., 3] > 0), :3] = (255, 150, 190)
        return out

    def test_a_glow_is_three_defects_of_a_soft_print_and_none_of_a_halftone(self) -> None:
        names = ("art_box", "soft_pixels", "halo")
        soft, halftone = (preflight(self.glow(), print_dpi=300, print_alpha=mode) for mode in ("soft", "halftone"))
        assert [check(soft, name)["level"] for name in names] == ["warn", "fail", "fail"]
        assert [check(halftone, name)["level"] for name in names] == ["ok", "ok", "ok"]
        assert check(halftone, "soft_pixels")["value"] == check(soft, "soft_pixels")["value"]
        assert "dots of full ink" in check(halftone, "soft_pixels")["message"]

    def test_a_hard_cut_through_a_glow_is_told(self) -> None:
        report = preflight(self.glow(), print_dpi=300, print_alpha="hard")
        assert check(report, "art_box")["level"] == "ok"
        assert check(report, "soft_pixels")["level"] == "warn"
        assert "ends them in a line" in check(report, "soft_pixels")["message"]

    def test_a_halftone_does_not_excuse_a_rim_of_the_old_background(self) -> None:
        alpha = disc_alpha(200, 60, 6)
        rim = painted(alpha)
        ink, paper = np.array([20.0, 20, 20]), np.array([255.0, 255, 255])
        rim[..., :3] = (alpha[..., None] * ink + (1 - alpha[..., None]) * paper) * (alpha[..., None] > 0)
        assert check(preflight(rim, print_dpi=300, print_alpha="halftone"), "halo")["level"] != "ok"

    def test_the_resolution_is_that_of_the_planned_print(self) -> None:
        report = preflight(painted(disc_alpha(200, 60)), print_dpi=100, dpi=(72, 72))
        assert check(report, "resolution")["value"] == 100
        assert check(report, "resolution")["level"] == "fail"
        assert report["print"] == {"width_in": 1.2, "height_in": 1.2, "dpi": 100, "width_assumed": False}

    @pytest.mark.parametrize("dpi", [0.0, -3.0, float("nan")])
    def test_a_resolution_that_is_none_is_refused(self, dpi: float) -> None:
        with pytest.raises(ValueError, match="print_dpi"):
            preflight(painted(canvas()), print_dpi=dpi)


class TestIslands:
    def test_pieces_and_specks_are_counted(self) -> None:
        """At 300 dpi the limit is 4.2 px: dots of 1-4 px are specks, one of 5 px is not."""
        alpha = canvas(400, 400)
        alpha[100:300, 50:350] = 255
        for index, side in enumerate((1, 2, 3, 4, 5)):
            alpha[20 : 20 + side, 60 + 40 * index : 60 + 40 * index + side] = 255
        report = preflight(painted(alpha), target_width_in=1)
        assert check(report, "resolution")["value"] == 300
        assert check(report, "islands")["value"] == [6, 4]
        assert check(report, "islands")["level"] == "warn"
        assert "4 are specks" in check(report, "islands")["message"]

    @pytest.mark.parametrize("pool", [9_000, 30_000, 10**9])
    def test_specks_are_measured_to_the_pixel_though_counted_on_a_copy(
        self, pool: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on canvases above 4 megapixels; the limit, at 300 dpi, must stay exact."""
        monkeypatch.setattr("worker.images.preflight.planes.POOL_PIXELS", pool)
        alpha = canvas(240, 350)
        alpha[60:230, 20:320] = 255
        for index, side in enumerate((1, 4, 4, 5, 6, 3)):
            alpha[3 + index : 3 + index + side, 33 + 41 * index : 33 + 41 * index + side] = 255
        report = preflight(painted(alpha), target_width_in=1)
        assert check(report, "islands")["value"] == [7, 4]

    def test_touching_by_a_corner_is_one_piece(self) -> None:
        alpha = canvas()
        alpha[50:100, 50:100] = alpha[100:150, 100:150] = 255
        found = check(preflight(painted(alpha)), "islands")
        assert found["value"] == [1, 0]
        assert found["message"].startswith("The art is one piece")

    def test_a_long_thin_piece_is_no_speck(self) -> None:
        alpha = canvas()
        alpha[50:150, 50:150] = 255
        alpha[20, 50:150] = 255
        assert check(preflight(painted(alpha)), "islands")["value"] == [2, 0]


class TestLinesAndGaps:
    @staticmethod
    def line(width: float, angle: float) -> Array:
        """A slanted bar of 110 px beside a solid block, drawn with antialiasing."""
        y, x = np.mgrid[0 : 240 * 4, 0 : 320 * 4] / 4 + 0.125
        turn = np.deg2rad(angle)
        along = (x - 220) * np.cos(turn) + (y - 120.3) * np.sin(turn)
        across = (y - 120.3) * np.cos(turn) - (x - 220) * np.sin(turn)
        fine = ((abs(across) <= width / 2) & (abs(along) < 55)).astype(np.float32)
        alpha: Array = cv2.resize(fine, (320, 240), interpolation=cv2.INTER_AREA)
        alpha[70:170, 20:120] = 1
        return alpha

    @pytest.mark.parametrize("angle", [0, 17, 45, 71, 90])
    @pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 8, 12, 20])
    def test_the_thinnest_line_is_found_within_a_step(self, width: int, angle: float) -> None:
        step = 1 if width < 6 else 2 if width < 12 else 4
        found = check(preflight(painted(self.line(width, angle)), target_width_in=1), "thinnest_line")
        assert isinstance(found["value"], list)
        assert found["value"][0] == pytest.approx(width, abs=step)

    def test_a_line_is_told_in_px_mm_and_points(self) -> None:
        """255 px wide art printed 0.85 in wide is 300 dpi: 3 px are 0.254 mm or 0.72 pt."""
        found = check(preflight(painted(self.line(3, 0)), target_width_in=255 / 300), "thinnest_line")
        assert found["value"] == pytest.approx([3, 0.254, 0.72], abs=0.001)
        assert found["level"] == "warn"
        assert "0.7 pt" in found["message"]

    def test_the_same_line_printed_larger_is_fine(self) -> None:
        found = check(preflight(painted(self.line(3, 0)), target_width_in=2), "thinnest_line")
        assert found["level"] == "ok"

    def test_art_of_hairlines_alone_fails(self) -> None:
        alpha = canvas()
        alpha[20:180:8, 20:220] = 255
        found = check(preflight(painted(alpha), target_width_in=0.6), "thinnest_line")
        assert found["value"] is not None
        assert found["level"] == "fail"
        assert found["details"]["thin_share"] == 1

    @given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.3), st.integers(1, 25), st.sampled_from([60, 300, 1500]))
    @settings(deadline=None, max_examples=150)
    def test_parts_are_as_long_on_a_copy_as_in_full(self, seed: int, density: float, length: int, pool: int) -> None:
        shape = (np.random.default_rng(seed).random((60, 80)) < density).astype(np.uint8) * 255
        truth = _has_part(shape, length)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("worker.images.preflight.planes.POOL_PIXELS", pool)
            assert _has_part(shape, length) == truth
        stats = cv2.connectedComponentsWithStats(shape, connectivity=8)[2][1:, 2:4]
        assert truth == bool(stats.max(initial=0) >= length)

    def test_a_short_line_is_found_among_many_rows_of_dots(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a copy each row of dots looks like a line, and longer than the real one."""
        shape = canvas(200, 80)
        shape[5:175:10, 4:76:2] = 255
        shape[190, 20:32] = 255
        monkeypatch.setattr("worker.images.preflight.planes.POOL_PIXELS", 2_000)
        assert _has_part(shape, 12)
        assert not _has_part(shape, 13)

    def test_a_line_that_is_all_of_the_art_is_found(self) -> None:
        alpha = canvas()
        alpha[100:103, 20:220] = 255
        assert numbers(preflight(painted(alpha)), "thinnest_line")[0] == 3

    @pytest.mark.parametrize("angle", [0, 10, 30, 45])
    def test_corners_specks_and_discs_are_no_lines(self, angle: float) -> None:
        alpha = canvas(400, 400)
        points = cv2.boxPoints(((200.0, 200.0), (220.0, 180.0), angle)).round().astype(np.int32)
        cv2.fillPoly(alpha, [points], (255,), cv2.LINE_AA)
        alpha[20:23, 20:23] = 255
        assert check(preflight(painted(alpha), target_width_in=1), "thinnest_line")["value"] is None
        assert check(preflight(painted(disc_alpha(200, 80))), "thinnest_line")["value"] is None

    @pytest.mark.parametrize(("gap", "found"), [(2, True), (4, True), (6, True), (12, False)])
    def test_a_gap_below_two_points_is_found(self, gap: int, found: bool) -> None:
        """At 300 dpi two points are 8.3 px."""
        alpha = canvas(300, 300)
        alpha[50:250, 20:140] = 255
        alpha[50:250, 140 + gap : 260 + gap] = 255
        report = check(preflight(painted(alpha), target_width_in=(240 + gap) / 300), "thinnest_gap")
        assert report["level"] == ("warn" if found else "ok")
        if found:
            assert isinstance(report["value"], list)
            assert report["value"][0] == pytest.approx(gap, abs=2)

    def test_the_space_around_one_shape_is_no_gap(self) -> None:
        assert check(preflight(painted(disc_alpha(200, 80)), target_width_in=0.5), "thinnest_gap")["value"] is None


class TestHalo:
    @pytest.mark.parametrize("ink", [(20, 20, 20), RED, (128, 128, 128), (240, 230, 200)])
    @pytest.mark.parametrize("soft", [1, 3, 8])
    def test_true_colours_under_a_soft_edge_have_no_halo(self, ink: tuple[int, ...], soft: float) -> None:
        found = check(preflight(painted(disc_alpha(200, 60, soft), ink)), "halo")
        assert found["value"] == [0, 0]
        assert found["level"] == "ok"

    @staticmethod
    def uncleaned(ink: tuple[int, ...], ground: int, soft: float) -> tuple[Array, Array]:
        """The picture (ink over ground) and its true alpha."""
        alpha = disc_alpha(200, 60, soft)
        rgb = alpha[..., None] * np.array(ink) + (1 - alpha[..., None]) * ground
        return rgb.round().astype(np.uint8), alpha

    @pytest.mark.parametrize("soft", [1, 3, 8])
    def test_white_left_in_the_edge_of_dark_art_shows_on_black(self, soft: float) -> None:
        rgb, alpha = self.uncleaned((20, 20, 20), 255, soft)
        report = preflight(np.dstack((rgb, (alpha * 255).round().astype(np.uint8))))
        on_black, on_white = numbers(report, "halo")
        assert on_black > 0.03
        assert on_white == 0
        assert check(report, "halo")["level"] != "ok"
        assert "light rim" in check(report, "halo")["message"]

    def test_black_left_in_the_edge_of_light_art_shows_on_white(self) -> None:
        rgb, alpha = self.uncleaned((240, 230, 200), 0, 3)
        report = preflight(np.dstack((rgb, (alpha * 255).round().astype(np.uint8))))
        on_black, on_white = numbers(report, "halo")
        assert on_white > 0.03
        assert on_black == 0
        assert "dark rim" in check(report, "halo")["message"]

    def test_our_own_edge_cleaning_takes_the_halo_away(self) -> None:
        rgb, alpha = self.uncleaned((20, 20, 20), 255, 4)
        cutout = cut_out(Picture(rgb, None), torch.from_numpy(alpha.astype(np.float32)))
        assert max(numbers(preflight(cutout), "halo")) < 0.001

    def test_a_mask_two_pixels_too_wide_fails(self) -> None:
        rgb, _ = self.uncleaned((20, 20, 20), 255, 1)
        wide = (disc_alpha(200, 62) * 255).round().astype(np.uint8)
        assert check(preflight(np.dstack((rgb, wide))), "halo")["level"] == "fail"

    def test_textured_art_has_hardly_any(self) -> None:
        rng = np.random.default_rng(0)
        cutout = painted(disc_alpha(200, 60, 2))
        cutout[..., :3] = np.clip(120 + rng.normal(0, 20, (200, 200, 3)), 0, 255)
        assert max(numbers(preflight(cutout), "halo")) < 0.001

    def test_a_halo_can_not_be_judged_without_solid_art(self) -> None:
        assert check(preflight(painted(np.full((40, 40), 100, np.uint8))), "halo")["value"] is None


class TestBorder:
    def test_each_side_tells_how_much_of_it_is_art(self) -> None:
        alpha = canvas(100, 200)
        alpha[:25, 100:150] = 255
        alpha[60:80, 160:] = 255
        found = check(preflight(painted(alpha)), "border")
        assert found["value"] == [0.25, 0.2, 0, 0]
        assert found["level"] == "warn"
        assert "top and right border" in found["message"]

    def test_art_inside_the_picture_is_whole(self) -> None:
        assert check(preflight(painted(disc_alpha(100, 40))), "border")["value"] == [0, 0, 0, 0]


@given(seed=st.integers(0, 10**6), height=st.integers(1, 40), width=st.integers(1, 40), blur=st.booleans())
@settings(deadline=None, max_examples=100)
def test_parts_of_small_shapes_are_those_that_opencv_finds(seed: int, height: int, width: int, blur: bool) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.random((height, width))
    shape = ((cv2.blur(noise, (3, 3)) if blur else noise) > rng.random()).astype(np.uint8)
    labels, boxes, areas = components(shape)
    count, expected, stats, _ = cv2.connectedComponentsWithStats(shape, connectivity=8)
    assert sorted(map(tuple, np.c_[boxes, areas].tolist())) == sorted(map(tuple, stats[1:].tolist()))
    # The same pixels together, under whatever number.
    assert len({(int(a), int(b)) for a, b in zip(labels.flat, expected.flat, strict=True)}) == len(np.unique(expected))
    assert np.array_equal(labels > 0, expected > 0)
    assert set(np.unique(labels[labels > 0])) == set(range(1, count))


def test_a_shape_of_many_parts_is_labelled_too() -> None:
    shape = np.zeros((32, 32), np.uint8)
    shape[::2, ::2] = 255
    labels, boxes, areas = components(shape)
    assert len(boxes) == len(areas) == labels.max() == 256
