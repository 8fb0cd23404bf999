"""Print outputs: placement, resizing without fringes, alpha modes, the white plate."""

import itertools
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.options import Position
from worker.images.halftone import box_of_large, choke, screen, sharpen_edges, small_regions
from worker.images.print_spec import AlphaMode, PrintSpec
from worker.images.printing import render_print

Array = np.ndarray[Any, Any]
MODES = get_args(AlphaMode)
POSITIONS = get_args(Position)


def disc(radius: float, size: int = 100, centre: tuple[float, float] | None = None) -> Array:
    """(size, size) uint8 coverage of a disc, antialiased by 8x8 samples per pixel."""
    cx, cy = centre or (size / 2, size / 2)
    y, x = (np.mgrid[0 : size * 8, 0 : size * 8] + 0.5) / 8
    inside = ((x - cx) ** 2 + (y - cy) ** 2 <= radius**2).astype(np.float32)
    coverage: Array = np.rint(inside.reshape(size, 8, size, 8).mean((1, 3)) * 255).astype(np.uint8)
    return coverage


def painted(alpha: Array, colour: tuple[int, int, int] = (255, 0, 0)) -> Array:
    """One colour under an alpha, 0 where nothing shows."""
    out = np.zeros((*alpha.shape, 4), np.uint8)
    out[alpha > 0, :3] = colour
    out[..., 3] = alpha
    return out


def rectangle(width: int, height: int, colour: tuple[int, int, int] = (255, 0, 0)) -> Array:
    return painted(np.full((height, width), 255, np.uint8), colour)


def fade(width: int = 200, height: int = 100) -> Array:
    return painted(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)), (10, 200, 90))


def radius_of(mask: Array) -> float:
    return float(np.sqrt((mask >= 128).sum() / np.pi))


specs = st.builds(
    PrintSpec,
    canvas=st.one_of(st.none(), st.tuples(st.integers(9, 70), st.integers(9, 70))),
    dpi=st.sampled_from([72, 150.0, 300]),
    trim=st.booleans(),
    position=st.sampled_from(POSITIONS),
    scale=st.sampled_from(["fit", "none"]),
    margin_px=st.integers(0, 4),
    allow_upscale=st.booleans(),
    alpha=st.sampled_from(MODES),
    threshold=st.floats(0, 1),
    choke_px=st.one_of(st.none(), st.floats(0, 4)),
    min_island_mm=st.floats(0, 0.8),
    min_hole_mm=st.floats(0, 0.8),
    halftone_lpi=st.floats(10, 24),
    underbase=st.booleans(),
    underbase_choke_px=st.floats(0, 3),
)


@st.composite
def cutouts(draw: st.DrawFn) -> Array:
    """Noise, blurred noise, blocks or nothing, with colours under alpha 0 too: what no cutout should have."""
    width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    art = rng.integers(0, 256, (height, width, 4), np.uint8)
    kind = draw(st.sampled_from(["noise", "smooth", "block", "empty", "specks"]))
    alpha = art[..., 3]
    if kind == "smooth":
        alpha = cv2.blur(np.ascontiguousarray(alpha), (9, 9))
    elif kind == "block":
        alpha = np.zeros_like(alpha)
        alpha[height // 3 :, width // 4 :] = 255
    elif kind == "empty":
        alpha = np.zeros_like(alpha)
    elif kind == "specks":
        alpha = np.where(rng.random(alpha.shape) < 0.03, alpha, 0)
    art[..., 3] = alpha
    return art


class TestEveryPrint:
    @given(cutouts(), specs)
    @settings(deadline=None, max_examples=250)
    def test_any_art_and_any_order_give_a_consistent_print(self, art: Array, spec: PrintSpec) -> None:
        before = art.copy()
        result = render_print(art, spec)
        image, alpha = result.image, result.image[..., 3]
        assert (art == before).all()
        assert image.dtype == np.uint8
        if spec.canvas is not None:
            assert image.shape == (spec.canvas[1], spec.canvas[0], 4)
        assert (image[alpha == 0] == 0).all()
        if spec.alpha != "soft":
            assert set(np.unique(alpha)) <= {0, 255}
        margin = spec.margin_px
        outside = np.ones(alpha.shape, bool)
        outside[margin : alpha.shape[0] - margin, margin : alpha.shape[1] - margin] = False
        assert not alpha[outside].any()
        assert result.upscaled == (result.scale > 1)
        assert not (result.upscaled and not spec.allow_upscale)
        assert not (result.limited and (spec.allow_upscale or spec.scale == "none" or result.scale != 1))
        assert result.effective_dpi == pytest.approx(spec.dpi / result.scale)
        assert result.removed_pixels >= result.removed_islands >= 0
        if result.box is None:
            assert not alpha.any()
        else:
            left, top, width, height = result.box
            rows, columns = np.nonzero(alpha)
            assert (columns.min(), rows.min()) == (left, top)
            assert (columns.max() + 1 - left, rows.max() + 1 - top) == (width, height)
        assert (result.underbase is not None) == spec.underbase
        if result.underbase is not None:
            assert result.underbase.shape == alpha.shape
            assert (result.underbase <= alpha).all()

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (4, 1), (1, 4), (2, 2)])
    @pytest.mark.parametrize("upscale", [False, True])
    def test_extreme_shapes_fit(self, size: tuple[int, int], mode: AlphaMode, upscale: bool) -> None:
        spec = PrintSpec(canvas=(40, 50), alpha=mode, choke_px=0, min_island_mm=0, allow_upscale=upscale)
        result = render_print(rectangle(*size), spec)
        assert result.image.shape == (50, 40, 4)
        assert result.box is not None
        assert (result.image[result.image[..., 3] > 0] == (255, 0, 0, 255)).all()

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("canvas", [None, (30, 40)])
    def test_empty_art_gives_an_empty_canvas(self, mode: AlphaMode, canvas: tuple[int, int] | None) -> None:
        spec = PrintSpec(canvas=canvas, alpha=mode, underbase=True, margin_px=2)
        result = render_print(np.zeros((7, 9, 4), np.uint8), spec)
        assert result.image.shape == ((11, 13, 4) if canvas is None else (40, 30, 4))
        assert not result.image.any()
        assert result.underbase is not None
        assert not result.underbase.any()
        assert result.box is None

    def test_art_too_faint_for_hard_alpha_is_empty(self) -> None:
        assert render_print(painted(np.full((9, 9), 100, np.uint8)), PrintSpec(canvas=(9, 9), alpha="hard")).box is None

    def test_views_with_odd_strides_are_read_right(self) -> None:
        art = fade(40, 20)
        flipped = render_print(art[::-1, ::-1], PrintSpec(canvas=(40, 20), trim=False)).image
        assert (flipped[::-1, ::-1] == art).all()

    @pytest.mark.parametrize(
        "bad",
        [np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 4), np.float32), np.zeros((0, 3, 4), np.uint8), np.zeros(4)],
    )
    def test_what_is_no_cutout_is_refused(self, bad: Array) -> None:
        with pytest.raises(ValueError, match="the cutout is"):
            render_print(bad, PrintSpec())


class TestOrder:
    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("canvas", (0, 5), "canvas"),
            ("canvas", (5, 12_001), "1 to 12000"),
            ("canvas", (12_000, 12_000), "64000000"),
            ("canvas", (5.0, 5), "canvas"),
            ("canvas", [5, 5], "canvas"),
            ("dpi", 29, "30 to 2400"),
            ("dpi", float("nan"), "30 to 2400"),
            ("dpi", True, "30 to 2400"),
            ("trim", 1, "true or false"),
            ("position", "middle", "top-left"),
            ("scale", 0, "fit"),
            ("scale", 1.01, "fit"),
            ("scale", "fill", "fit"),
            ("margin_px", -1, "0 to 2249"),
            ("margin_px", 2250, "0 to 2249"),
            ("margin_px", 1.5, "whole"),
            ("alpha", "dither", "halftone"),
            ("threshold", 1.1, "0 to 1"),
            ("choke_px", 11, "0 to 10"),
            ("min_island_mm", -0.1, "0 to 2"),
            ("min_hole_mm", 6, "0 to 2"),
            ("halftone_lpi", 9, "10 to 100"),
            ("halftone_angle_deg", 91, "0 to 90"),
            ("underbase_choke_px", "2", "0 to 10"),
        ],
    )
    def test_a_bad_value_is_named_with_its_range(self, field: str, value: Any, says: str) -> None:
        with pytest.raises(ValueError, match=says) as caught:
            PrintSpec(**{field: value})
        assert str(caught.value).startswith(field)
        assert repr(value) in str(caught.value)

    def test_a_screen_finer_than_the_pixels_is_refused(self) -> None:
        with pytest.raises(ValueError, match="halftone_lpi is 35; at 72 dpi it must be 10 to 24"):
            PrintSpec(alpha="halftone", dpi=72)

    def test_a_fraction_needs_a_canvas(self) -> None:
        with pytest.raises(ValueError, match=r"scale is 0\.5"):
            PrintSpec(canvas=None, scale=0.5)

    def test_the_default_choke_depends_on_the_mode(self) -> None:
        assert [PrintSpec(alpha=mode).choke for mode in MODES] == [0, 1, 0]


class TestPlacement:
    @pytest.mark.parametrize("position", POSITIONS)
    def test_the_art_goes_where_it_is_told(self, position: Position) -> None:
        spec = PrintSpec(canvas=(50, 60), margin_px=5, scale="none", position=position)
        box = render_print(rectangle(10, 12), spec).box
        left = 5 if "left" in position else 35 if "right" in position else 20
        top = 5 if "top" in position else 43 if "bottom" in position else 24
        assert box == (left, top, 10, 12)

    def test_too_large_art_is_shrunk_into_the_margins(self) -> None:
        result = render_print(rectangle(200, 100), PrintSpec(canvas=(60, 60), margin_px=5))
        assert result.box == (5, 17, 50, 25)
        assert result.scale == 0.25
        assert result.effective_dpi == 1200
        assert not result.limited

    def test_pixels_as_they_are_still_fit_the_canvas(self) -> None:
        result = render_print(rectangle(200, 100), PrintSpec(canvas=(60, 60), scale="none"))
        assert result.scale == 0.3

    def test_small_art_is_not_enlarged_and_says_so(self) -> None:
        result = render_print(rectangle(10, 10), PrintSpec(canvas=(60, 60)))
        assert (result.scale, result.upscaled, result.limited) == (1, False, True)
        assert result.box == (25, 25, 10, 10)

    def test_small_art_is_enlarged_when_allowed(self) -> None:
        result = render_print(rectangle(10, 10), PrintSpec(canvas=(60, 80), allow_upscale=True))
        assert (result.scale, result.upscaled, result.limited) == (6, True, False)
        assert result.box == (0, 10, 60, 60)
        assert result.effective_dpi == 50

    def test_a_fraction_fills_that_part_of_the_room(self) -> None:
        result = render_print(rectangle(300, 100), PrintSpec(canvas=(120, 120), margin_px=10, scale=0.5))
        assert result.box is not None
        assert result.box[2] == 50

    def test_small_art_that_reaches_its_fraction_is_not_limited(self) -> None:
        assert not render_print(rectangle(30, 10), PrintSpec(canvas=(60, 60), scale=0.5)).limited

    def test_without_a_canvas_the_art_is_trimmed_to_its_margin(self) -> None:
        art = np.zeros((50, 50, 4), np.uint8)
        art[10:20, 30:45] = (1, 2, 3, 255)
        result = render_print(art, PrintSpec(canvas=None, margin_px=3))
        assert result.image.shape == (16, 21, 4)
        assert (result.image[3:13, 3:18] == (1, 2, 3, 255)).all()

    def test_without_trim_the_free_space_counts(self) -> None:
        art = np.zeros((40, 40, 4), np.uint8)
        art[:10, :10] = 255
        assert render_print(art, PrintSpec(canvas=(40, 40), trim=False)).box == (0, 0, 10, 10)
        assert render_print(art, PrintSpec(canvas=(40, 40), trim=True)).box == (15, 15, 10, 10)

    @pytest.mark.parametrize("mode", ["hard", "halftone"])
    def test_a_speck_in_the_corner_neither_shrinks_nor_moves_the_art(self, mode: AlphaMode) -> None:
        art = np.zeros((300, 300, 4), np.uint8)
        art[100:200, 100:200] = 255
        art[2:4, 2:4] = 255
        art[297, 299] = 255
        result = render_print(art, PrintSpec(canvas=(50, 50), alpha=mode, choke_px=0))
        assert result.box == (0, 0, 50, 50)
        assert (result.removed_islands, result.removed_pixels) == (2, 5)


class TestResizing:
    @given(st.integers(5, 240), st.tuples(*[st.integers(0, 255)] * 3))
    @settings(deadline=None, max_examples=40)
    def test_one_colour_stays_that_colour_at_every_alpha(self, side: int, colour: tuple[int, int, int]) -> None:
        art = painted(disc(38.3), colour)
        image = render_print(art, PrintSpec(canvas=(side, side), allow_upscale=True)).image
        assert (image[image[..., 3] > 0, :3] == colour).all()

    @pytest.mark.parametrize("side", [30, 55, 76, 77, 150, 400])
    def test_coverage_is_kept(self, side: int) -> None:
        art = painted(disc(38.3))
        result = render_print(art, PrintSpec(canvas=(side, side), allow_upscale=True))
        area = result.image[..., 3].sum() / 255 / result.scale**2
        assert area == pytest.approx(np.pi * 38.3**2, rel=0.01)

    def test_enlarging_leaves_no_haze_around_the_art(self) -> None:
        """Lanczos would leave alpha 1 to 5 about two source pixels outside of the outline."""
        art = np.zeros((40, 40, 4), np.uint8)
        art[10:30, 10:30] = 255
        result = render_print(art, PrintSpec(canvas=(400, 400), trim=False, allow_upscale=True))
        assert result.box is not None
        assert result.box[2] <= 200 + 2 * 5

    def test_the_same_size_changes_nothing(self) -> None:
        art = fade()
        art[art[..., 3] == 0] = 0
        assert (render_print(art, PrintSpec(canvas=(200, 100), trim=False)).image == art).all()


class TestHardAlpha:
    @pytest.mark.parametrize("amount", [0, 0.5, 1, 1.5, 2, 3, 5, 10])
    @pytest.mark.parametrize("radius", [20.0, 31.4, 40.7])
    def test_choke_takes_its_pixels_from_the_radius(self, amount: float, radius: float) -> None:
        shrunk = radius - radius_of(choke(disc(radius, centre=(50.3, 49.8)), amount))
        assert shrunk == pytest.approx(amount, abs=0.3)

    def test_choke_never_adds_and_grows_with_its_radius(self) -> None:
        alpha = np.asarray(cv2.blur(np.random.default_rng(0).integers(0, 256, (80, 80), np.uint8), (5, 5)), np.uint8)
        chain = [choke(alpha, radius) for radius in (0, 0.25, 0.5, 1, 1.3, 2, 3.7)]
        for wider, narrower in itertools.pairwise(chain):
            assert (narrower <= wider).all()

    def test_the_threshold_decides(self) -> None:
        art = fade(256, 9)
        for threshold, first in ((0, 1), (0.2, 51), (0.5, 128), (1, 255)):
            spec = PrintSpec(
                canvas=(256, 9), trim=False, alpha="hard", threshold=threshold, choke_px=0, min_island_mm=0
            )
            columns = np.nonzero(render_print(art, spec).image[0, :, 3])[0]
            assert columns.min() == first

    def test_specks_go_and_large_art_and_thin_lines_stay(self) -> None:
        art = np.zeros((100, 100, 4), np.uint8)
        art[20:60, 20:60] = 255
        art[80:83, 80:83] = 255  # 9 pixels; the minimum at 300 dpi is 13.4
        art[5, 5] = 255
        art[90, 10:60] = 255  # a hairline is drawing, not dirt
        result = render_print(art, PrintSpec(canvas=(100, 100), trim=False, alpha="hard", choke_px=0))
        assert (result.removed_islands, result.removed_pixels) == (2, 10)
        assert result.image[..., 3].sum() == (40 * 40 + 50) * 255

    def test_pinholes_are_filled_with_the_nearest_colour_and_large_holes_stay(self) -> None:
        art = rectangle(80, 80, (200, 30, 60))
        art[:, 40:, :3] = (10, 20, 250)
        art[20:22, 10:13] = 0
        art[20:23, 60:63] = 0
        art[50:60, 20:30] = 0
        image = render_print(art, PrintSpec(canvas=(80, 80), alpha="hard", choke_px=0)).image
        assert (image[20:22, 10:13] == (200, 30, 60, 255)).all()
        assert (image[20:23, 60:63] == (10, 20, 250, 255)).all()
        assert not image[50:60, 20:30].any()

    def test_a_wide_filled_hole_takes_its_colours_from_its_rim(self) -> None:
        art = rectangle(60, 60, (200, 30, 60))
        art[20:32, 20:32] = 0
        spec = PrintSpec(canvas=(60, 60), alpha="hard", choke_px=0, min_hole_mm=2)
        assert (render_print(art, spec).image == (200, 30, 60, 255)).all()

    def test_a_notch_in_the_border_is_no_hole(self) -> None:
        art = rectangle(40, 40)
        art[0, 10:13] = 0
        assert not render_print(art, PrintSpec(canvas=(40, 40), alpha="hard", choke_px=0)).image[0, 10:13].any()

    def test_new_opaque_pixels_have_the_arts_colour(self) -> None:
        image = render_print(painted(disc(30), (7, 77, 177)), PrintSpec(canvas=(100, 100), alpha="hard")).image
        assert (image[image[..., 3] > 0] == (7, 77, 177, 255)).all()


class TestSmallRegions:
    @given(
        st.integers(1, 40),
        st.integers(1, 40),
        st.floats(0.02, 0.95),
        st.integers(0, 2**32 - 1),
        st.floats(0, 30),
        st.booleans(),
    )
    @settings(deadline=None, max_examples=200)
    def test_the_short_cut_finds_what_counting_every_region_finds(
        self, width: int, height: int, density: float, seed: int, least: float, holes: bool
    ) -> None:
        rng = np.random.default_rng(seed)
        mask = np.where(rng.random((height, width)) < density, 255, 0).astype(np.uint8)
        if seed % 2:
            mask = mask.repeat(3, axis=0).repeat(3, axis=1)
        regions = 255 - mask if holes else mask
        number, labels = cv2.connectedComponents(regions, connectivity=4 if holes else 8)
        border = {*labels[0], *labels[-1], *labels[:, 0], *labels[:, -1]} if holes else set()
        area = np.bincount(labels.ravel(), minlength=number)
        small = [n for n in range(1, number) if area[n] < least and n not in border]
        found, count, pixels = small_regions(mask, least, holes=holes)
        assert (count, pixels) == (len(small), area[small].sum())
        assert ((found if found is not None else np.zeros_like(mask)) == np.where(np.isin(labels, small), 255, 0)).all()

    @given(st.integers(1, 150), st.integers(1, 150), st.floats(0.005, 0.6), st.integers(0, 2**32 - 1), st.floats(0, 30))
    @settings(deadline=None, max_examples=200)
    def test_the_box_is_that_of_the_large_islands(
        self, width: int, height: int, density: float, seed: int, least: float
    ) -> None:
        rng = np.random.default_rng(seed)
        mask = np.where(rng.random((height, width)) < density, 255, 0).astype(np.uint8)
        mask[height // 3 : height // 2, width // 4 : width // 2] = 255
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        large = np.nonzero(stats[1:, cv2.CC_STAT_AREA] >= least)[0] + 1
        shown = mask if not large.size else np.where(np.isin(labels, large), 255, 0).astype(np.uint8)
        box, _, _ = box_of_large(mask, least)
        assert box == (cv2.boundingRect(shown) if mask.any() else None)


class TestHalftone:
    @pytest.mark.parametrize("percent", [10, 30, 50, 70, 78, 85, 90])
    @pytest.mark.parametrize(("lpi", "angle"), [(35, 22.5), (55, 45), (45, 0), (25, 30)])
    def test_the_dots_cover_as_much_as_the_alpha(self, percent: int, lpi: float, angle: float) -> None:
        art = painted(np.full((300, 300), round(percent * 2.55), np.uint8))
        spec = PrintSpec(canvas=(300, 300), alpha="halftone", halftone_lpi=lpi, halftone_angle_deg=angle)
        alpha = render_print(art, spec).image[..., 3]
        assert alpha.mean() / 255 == pytest.approx(percent / 100, abs=0.02)

    def test_dots_are_round_and_as_far_apart_as_asked(self) -> None:
        dots = screen(np.full((240, 240), 64, np.uint8), 12.0, 22.5, 1.0)
        _, _, stats, centres = cv2.connectedComponentsWithStats(dots)
        whole = (stats[:, 2] < 30) & (stats[:, 0] > 0) & (stats[:, 1] > 0)
        whole &= (stats[:, 0] + stats[:, 2] < 240) & (stats[:, 1] + stats[:, 3] < 240)
        assert abs(stats[whole, 2] - stats[whole, 3]).max() <= 1
        points = centres[whole]
        gap = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(len(points)) * 1e9
        assert gap.min(1).mean() == pytest.approx(12.0, abs=0.3)
        first = points[np.argmin(abs(points - 120).sum(1))]
        others = points[np.argsort(np.linalg.norm(points - first, axis=1))[1:5]] - first
        angles = np.degrees(np.arctan2(others[:, 1], others[:, 0])) % 90
        assert angles == pytest.approx(np.full(4, 22.5), abs=3)

    def test_solid_and_empty_areas_stay(self) -> None:
        alpha = np.zeros((50, 60), np.uint8)
        alpha[:, 20:40] = 255
        assert (screen(alpha, 8.6, 22.5, 1.8) == alpha).all()

    def test_dots_too_small_to_print_are_left_out_and_gaps_closed(self) -> None:
        assert not screen(np.full((90, 90), 6, np.uint8), 8.6, 22.5, 1.8).any()
        assert screen(np.full((90, 90), 250, np.uint8), 8.6, 22.5, 1.8).all()

    def test_more_alpha_never_means_less_ink(self) -> None:
        patches = [screen(np.full((60, 60), level, np.uint8), 8.6, 22.5, 1.8) for level in range(0, 256, 5)]
        for lighter, darker in itertools.pairwise(patches):
            assert (lighter <= darker).all()

    def test_bands_leave_no_seams(self) -> None:
        """A tall patch equals the same patch screened row by row from the same origin."""
        tall = screen(np.full((200, 40), 100, np.uint8), 8.6, 22.5, 1.8)
        assert (tall[:70] == screen(np.full((70, 40), 100, np.uint8), 8.6, 22.5, 1.8)).all()

    def test_sharp_outlines_stay_outlines(self) -> None:
        hard = render_print(painted(disc(40)), PrintSpec(canvas=(100, 100), alpha="hard", choke_px=0)).image
        dots = render_print(painted(disc(40)), PrintSpec(canvas=(100, 100), alpha="halftone")).image
        assert (hard[..., 3] != dots[..., 3]).mean() < 0.001

    def test_fades_are_no_edges(self) -> None:
        alpha = np.ascontiguousarray(fade()[..., 3])
        inner = (slice(5, -5), slice(5, -5))  # the picture's own border is an outline
        assert (sharpen_edges(alpha, 8.6, 0.5)[inner] == alpha[inner]).all()

    def test_specks_go_but_dots_stay(self) -> None:
        art = fade(200, 100)
        art[:, :60] = 0
        art[10:12, 10:12] = 255
        result = render_print(art, PrintSpec(canvas=(200, 100), trim=False, alpha="halftone"))
        assert (result.removed_islands, result.removed_pixels) == (1, 4)
        assert not result.image[:, :60].any()
        assert result.image[:, 60:].any()

    def test_a_haze_that_no_dot_can_show_neither_shrinks_the_art_nor_prints(self) -> None:
        art = painted(np.full((100, 100), 5, np.uint8))
        art[25:75, 25:75, 3] = 255
        result = render_print(art, PrintSpec(canvas=(50, 50), alpha="halftone"))
        assert result.box == (0, 0, 50, 50)
        assert result.scale == 1
        assert result.removed_islands == 0

    def test_every_dot_has_the_arts_colour(self) -> None:
        image = render_print(fade(), PrintSpec(canvas=(200, 100), alpha="halftone")).image
        assert (image[image[..., 3] > 0] == (10, 200, 90, 255)).all()


class TestUnderbase:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("amount", [0, 1, 2, 4])
    def test_the_white_stays_inside_by_the_choke(self, mode: AlphaMode, amount: float) -> None:
        spec = PrintSpec(canvas=(100, 100), alpha=mode, choke_px=0, underbase=True, underbase_choke_px=amount)
        result = render_print(painted(disc(40)), spec)
        assert result.underbase is not None
        assert 40 - radius_of(result.underbase) == pytest.approx(amount, abs=0.3)

    def test_art_that_fills_the_canvas_is_choked_at_its_border(self) -> None:
        result = render_print(rectangle(30, 30), PrintSpec(canvas=(30, 30), underbase=True))
        assert result.underbase is not None
        assert result.underbase[2:-2, 2:-2].all()
        assert result.underbase.sum() == 26 * 26 * 255

    def test_soft_white_fades_like_the_art(self) -> None:
        art = fade()
        spec = PrintSpec(canvas=(200, 100), trim=False, underbase=True, underbase_choke_px=0)
        white = render_print(art, spec).underbase
        assert white is not None
        assert (white == art[..., 3]).all()

    def test_halftone_dots_keep_white_under_them(self) -> None:
        """At 20 % a choke of 2 px would take the white from every dot."""
        art = painted(np.full((200, 200), 51, np.uint8))
        result = render_print(art, PrintSpec(canvas=(200, 200), alpha="halftone", underbase=True))
        assert result.underbase is not None
        dots = result.image[..., 3]
        number = cv2.connectedComponents(np.ascontiguousarray(dots))[0]
        assert cv2.connectedComponents(result.underbase)[0] > 0.8 * number
        assert not (result.underbase > choke(np.ascontiguousarray(dots), 1)).any()
