"""The pictures that the starter weights learn from and are measured on: their splits, their alpha, their fairness."""

import inspect
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from training import data, supply
from training.backgrounds import FOCUS_GROUNDS, GROUNDS, Floats
from training.camera import tilted
from training.contrast import FAINT_CONTRAST, legibility, without_invisible
from training.data import (
    composed,
    drawn_assets,
    load_assets,
    normalised,
    put_together,
    recoloured,
    sample,
    training_pairs,
)
from training.designs import outlined
from training.heldout import EXTRA, GROUND_QUOTA, TEST_SET, read_test_set, wanted
from training.kinds import KINDS
from training.mockups import Stage
from training.split import (
    ALLOWED_LICENCES,
    ART_SETS,
    CLIPART_FOLDERS,
    CLIPART_LICENCE,
    FONT_LICENCES,
    FONTS,
    PHOTOS,
    SPLITS,
    clipart_split,
)
from training.textures import halftone, smoke, worn

#: Bytes of the stored test set: it lives in git.
SIZE_LIMIT_BYTES = 13_000_000
#: The first pictures of simple shapes at 96 px, seed 7001: kind, ground, and mean alpha, 0..255.
STORED_KINDS = [
    ("smoke", "mockup_photo"), ("badge", "flat"), ("halftone", "garment"), ("distressed", "flat"),
    ("illustration", "garment"), ("emoji", "photo"), ("badge", "gradient"), ("layered", "pattern"),
]  # fmt: skip
STORED_ALPHAS = (42.11, 80.9, 57.18, 41.6, 9.98, 18.96, 50.59, 23.71)


def disc(side: int, radius: float, colour: tuple[float, float, float]) -> Floats:
    """A premultiplied disc in the middle of a (side, side, 4) canvas."""
    y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2
    mask = (np.hypot(x, y) < radius).astype(np.float32)
    return np.dstack((mask[..., None] * np.array(colour, np.float32), mask)).astype(np.float32)


def plain(side: int, value: float) -> Floats:
    return np.full((side, side, 3), value, np.float32)


class TestSplits:
    def test_no_package_and_no_photographer_is_in_two_splits(self) -> None:
        for pairs in (
            {(art.package.rpartition("@")[0], art.split) for art in ART_SETS},
            {(photo.author, photo.split) for photo in PHOTOS},
        ):
            assert max(Counter(name for name, _ in pairs).values()) == 1

    def test_each_split_has_colour_art_icons_photos_and_fonts(self) -> None:
        for split in SPLITS:
            assert {art.mono for art in ART_SETS if art.split == split} == {False, True}
            assert any(photo.split == split for photo in PHOTOS)
            assert split in FONTS.values()
            assert split in {*CLIPART_FOLDERS.values(), clipart_split("tools/hammer.svg")}

    def test_a_clip_art_folder_belongs_to_one_split_whatever_lies_below_it(self) -> None:
        assert clipart_split("animals/birds/duck.svg") == clipart_split("animals/birds/sea/gull.svg") == "test"
        assert clipart_split("animals/birdsong.svg") == clipart_split("animals/mammals/cat.svg") == "train"

    def test_every_licence_lets_the_weights_be_given_away(self) -> None:
        used = {*(art.licence for art in ART_SETS), *(photo.licence for photo in PHOTOS), CLIPART_LICENCE}
        assert used | set(FONT_LICENCES) <= set(ALLOWED_LICENCES)
        assert not any("SA" in licence or "NC" in licence or "ND" in licence for licence in ALLOWED_LICENCES)

    def test_a_split_reads_its_own_files_only(self, tmp_path: Path) -> None:
        for folder in ("art", "photos", "fonts"):
            (tmp_path / folder).mkdir()
        for level, split in enumerate(SPLITS, 1):
            art = np.full((level, 4, 4, 4), 40 * level, np.uint8)
            np.save(tmp_path / "art" / f"{split}_c_emoji_a-set.npy", art)
            np.save(tmp_path / "art" / f"{split}_m_thin_lines_another.npy", art)
            np.save(tmp_path / "art" / f"{split}_c_emoji_half.unfinished.npy", art)
            (tmp_path / "fonts" / f"{split}_face.woff").touch()
        for level, split in enumerate(SPLITS, 1):
            assets = load_assets(split, tmp_path)
            assert [pool.shape[0] for pool in assets.colour["emoji"]] == [level]
            assert int(assets.mono["thin_lines"][0].max()) == 40 * level
            assert [path.name for path in assets.fonts] == [f"{split}_face.woff"]
        with pytest.raises(FileNotFoundError, match=r"training\.assets"):
            load_assets("heldout", tmp_path)


class TestAlpha:
    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_colours_never_exceed_their_alpha(self, kind: str) -> None:
        assets = drawn_assets()
        for seed in range(6):
            canvas = KINDS[kind].make(np.random.default_rng(seed), assets, 96, 120)
            assert canvas.shape == (96, 120, 4)
            assert canvas.dtype == np.float32
            assert float(canvas.min()) >= -1e-5
            assert float((canvas[..., :3] - canvas[..., 3:]).max()) <= 2e-3
            assert float(canvas[..., 3].max()) <= 1 + 1e-5

    @pytest.mark.parametrize("ground", sorted(GROUNDS))
    def test_the_alpha_says_exactly_how_much_of_the_ground_shows(self, ground: str) -> None:
        """Another ground under the same design changes each pixel by (1 - alpha) times the grounds' difference."""
        assets, checked = drawn_assets(), 0
        for seed, kind in enumerate(sorted(KINDS)):
            layers = composed(np.random.default_rng((seed, 1)), assets, 80, 96, kind, ground)
            if layers is None:
                continue
            image, alpha = put_together(layers)
            swapped, same_alpha = put_together(layers._replace(ground=1 - layers.ground))
            expected = (1 - alpha[..., None] / 255.0) * (2 * layers.ground - 1) * 255
            np.testing.assert_array_equal(alpha, same_alpha)
            np.testing.assert_allclose(image.astype(float) - swapped, expected, atol=2.1)
            nothing = alpha == 0
            np.testing.assert_allclose(image[nothing], layers.ground[nothing] * 255, atol=1.1)
            checked += 1
        assert checked >= 6

    def test_a_hole_in_worn_or_screened_ink_is_no_ink(self) -> None:
        for make in (worn, halftone):
            for seed in range(8):
                mask = make(np.random.default_rng(seed), 128, 128)
                assert float(mask.min()) == 0
                assert float(mask.max()) == 1

    def test_smoke_is_thick_in_the_middle_and_fades_towards_the_frame(self) -> None:
        masks = [smoke(np.random.default_rng(seed), 96, 128) for seed in range(8)]
        for mask in masks:
            border = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
            assert float(border.mean()) < 0.1
            assert float(mask.max()) > 0.5

    def test_a_tilt_moves_design_and_ground_alike(self) -> None:
        side = 64
        canvas = disc(side, 20, (1, 1, 1))
        moved, ground = tilted(np.random.default_rng(3), (canvas, canvas[..., :3].copy()), 0.05)
        np.testing.assert_allclose(moved[..., :3], ground, atol=1e-5)
        assert float(np.abs(moved - canvas).max()) > 0.5


class TestFairness:
    def test_white_on_white_has_no_right_answer_and_black_on_white_has(self) -> None:
        assert not legibility(disc(96, 30, (1, 1, 1)), plain(96, 1)).is_fair
        assert legibility(disc(96, 30, (0, 0, 0)), plain(96, 1)).is_fair

    def test_a_contour_that_vanishes_on_one_side_is_unfair_although_most_of_it_shows(self) -> None:
        canvas = disc(256, 110, (0, 0, 0))
        canvas[121:135, 225:, :3] = canvas[121:135, 225:, 3:]  # a white patch at the rim
        found = legibility(canvas, plain(256, 1))
        assert found.contour < 0.03
        assert found.inside < 0.015
        assert not found.is_fair

    def test_a_patch_inside_in_the_grounds_colour_is_unfair_and_a_hole_is_not(self) -> None:
        canvas = disc(96, 30, (0, 0, 0))
        eye = disc(96, 8, (1, 1, 1))
        painted = canvas * (1 - eye[..., 3:]) + eye
        assert not legibility(painted, plain(96, 1)).is_fair
        assert legibility(canvas * (1 - eye[..., 3:]), plain(96, 1)).is_fair

    def test_half_covering_ink_must_differ_more_than_solid_ink(self) -> None:
        solid = disc(96, 30, (0.8, 0.8, 0.8))
        assert legibility(solid, plain(96, 1)).is_fair
        assert not legibility(solid * np.float32(0.6), plain(96, 1)).is_fair

    def test_ink_that_changes_nothing_is_not_there(self) -> None:
        canvas = disc(64, 20, (0.9, 0.9, 0.9)) * np.float32(0.3)
        assert float(without_invisible(canvas, plain(64, 1)).max()) == 0
        np.testing.assert_array_equal(without_invisible(canvas, plain(64, 0)), canvas)
        opaque = disc(64, 20, (1, 1, 1))
        np.testing.assert_array_equal(without_invisible(opaque, plain(64, 1)), opaque)

    @pytest.mark.parametrize("ground", sorted(GROUNDS))
    def test_what_is_drawn_is_fair(self, ground: str) -> None:
        assets = drawn_assets()
        for index, kind in enumerate(("icon", "lettering", "glow")):
            layers = None
            for seed in range(12):
                rng = np.random.default_rng((seed, index))
                layers = layers or composed(rng, assets, 96, 96, kind, ground)
            assert layers is not None
            assert legibility(*layers).is_fair

    def test_a_faint_picture_s_ground_is_near_its_ink_and_can_still_be_told_from_it(self) -> None:
        assets = drawn_assets()
        usual, faint, hard_to_see = 0, 0, 0
        for seed in range(30):
            plain_layers = composed(np.random.default_rng(seed), assets, 96, 96, "icon", "flat")
            near_layers = composed(np.random.default_rng(seed), assets, 96, 96, "icon", "flat", faint=True)
            if plain_layers is not None and near_layers is not None:
                assert legibility(*near_layers, FAINT_CONTRAST).is_fair
                usual += legibility(*plain_layers, 0.2).is_fair
                faint += legibility(*near_layers, 0.2).is_fair
                hard_to_see += not legibility(*near_layers).is_fair
        assert usual > 2 * faint
        assert hard_to_see > 0  # in no other picture is ink so near to its ground

    def test_soft_ink_has_no_faint_pictures(self) -> None:
        pair, same = (sample(drawn_assets(), 4, 2, 64, "glow", "flat", faint=faint) for faint in (False, True))
        np.testing.assert_array_equal(pair.image, same.image)

    def test_a_border_closes_a_small_counter_in_its_own_colour(self) -> None:
        ring = disc(64, 20, (0.1, 0.2, 0.3)) * (1 - disc(64, 4, (1, 1, 1))[..., 3:])
        bordered = outlined(np.random.default_rng(0), ring, 6, np.array((0.8, 0.1, 0.1), np.float32))
        np.testing.assert_allclose(bordered[32, 32], (0.8, 0.1, 0.1, 1))
        np.testing.assert_allclose(bordered[32, 32 + 12], (0.1, 0.2, 0.3, 1))
        assert not bordered[32, 32 + 28].any()

    def test_borders_are_wide_and_of_any_colour(self, monkeypatch: pytest.MonkeyPatch) -> None:
        borders: list[dict[str, Any]] = []
        monkeypatch.setattr(data, "outlined", _noting(outlined, lambda named: borders.append(dict(named))))
        closed, wide = [], []
        for seed in range(16):
            alphas = []
            for bordered in (False, True):
                borders.clear()
                rng = np.random.default_rng(seed)
                layers = composed(rng, drawn_assets(), 192, 192, "lettering", "flat", bordered=bordered)
                assert layers is not None
                assert legibility(*layers).is_fair
                alphas.append(layers.canvas[..., 3])
            wide.append(borders[0])  # any after it are of a print that can't be told from its ground
            outside = np.pad((alphas[0] < 0.5).astype(np.uint8), 1, constant_values=1)
            _, parts, sizes, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
            small = [part for part in range(1, len(sizes)) if sizes[part, cv2.CC_STAT_AREA] < 30]
            closed.append(alphas[1][np.isin(parts[1:-1, 1:-1], small)])
        assert np.concatenate(closed).size > 100
        assert np.concatenate(closed).mean() > 0.9
        assert all(0.01 * 192 <= border["width"] <= 0.035 * 192 for border in wide)
        assert 4 < sum(border["colour"] is not None for border in wide) < len(wide)

    def test_pictures_of_the_stored_sets_do_not_change_with_what_training_draws(self) -> None:
        """A number more or less from a picture's stream would make the test set another one."""
        assets = drawn_assets()
        drawn = [sample(assets, 7001, index, 96) for index in range(8)]
        assert [(pair.kind, pair.ground) for pair in drawn] == STORED_KINDS
        np.testing.assert_allclose([pair.alpha.mean() for pair in drawn], STORED_ALPHAS, atol=0.5)

    def test_soft_ink_has_no_border(self) -> None:
        layers = [
            composed(np.random.default_rng(3), drawn_assets(), 64, 64, "glow", "flat", bordered=border)
            for border in (False, True)
        ]
        assert layers[0] is not None
        assert layers[1] is not None
        np.testing.assert_array_equal(layers[0].canvas, layers[1].canvas)

    def test_a_print_lies_on_its_garment(self) -> None:
        for seed in range(40):
            stage = Stage.draw(np.random.default_rng(seed), 160, 128)
            left, top, across, down = stage.zone
            assert left >= 0
            assert top >= 0
            assert min(across, down) > 30
            assert top + down <= 160
            assert left + across <= 128
            assert float((stage.mask[top : top + down, left : left + across] > 0.5).mean()) > 0.97, stage.thing


class TestSets:
    def test_kind_and_ground_can_be_asked_for(self) -> None:
        pair = sample(drawn_assets(), 1, 1, 96, "halftone", "garment")
        assert (pair.kind, pair.ground) == ("halftone", "garment")

    def test_the_shares_of_kinds_and_of_grounds_are_whole(self) -> None:
        assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1)
        assert sum(GROUNDS.values()) == pytest.approx(1)
        assert sum(kind.focus for kind in KINDS.values()) == pytest.approx(1)
        assert sum(FOCUS_GROUNDS.values()) == pytest.approx(1)
        assert FOCUS_GROUNDS.keys() == GROUNDS.keys()

    def test_the_stored_set_is_the_table_it_says_and_fits_in_git(self) -> None:
        pairs = list(read_test_set())
        assert Counter((pair.kind, pair.ground) for _, pair in pairs) == Counter(wanted())
        assert len(pairs) == 240 == len(KINDS) * sum(GROUND_QUOTA.values()) + len(EXTRA)
        for name, pair in pairs:
            assert pair.image.shape == (*pair.alpha.shape, 3), name
            assert max(pair.alpha.shape) <= 800
            assert 0.004 < (pair.alpha > 76).mean() < 0.95, name
        assert sum(path.stat().st_size for path in TEST_SET.iterdir()) < SIZE_LIMIT_BYTES


def test_a_recoloured_photo_is_another_picture_of_the_same_scene() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (40, 60, 3), np.uint8)
    others = [recoloured(photo, number) for number in range(6)]
    assert len({other.tobytes() for other in others}) == 6
    assert all(sorted(other.shape[:2]) == [40, 60] and other.dtype == np.uint8 for other in others)
    np.testing.assert_array_equal(others[0], recoloured(photo, 0))


def test_pictures_of_a_run_that_goes_further_come_in_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ZOOMS", (0.5,))
    assets = drawn_assets()
    either: list[list[bool]] = []
    for image, alpha in islice(training_pairs(assets, 5, 64, focus=True), 16):
        assert alpha.shape == (1, 64, 64)
        drawn = (sample(assets, 5, len(either), 32, focus=True, faint=faint) for faint in (False, True))
        either.append([torch.equal(image, torch.from_numpy(normalised(pair.image, 64))) for pair in drawn])
    assert all(any(same) for same in either)
    assert any(not usual for usual, _ in either)  # some are faint,
    assert any(not faint for _, faint in either)  # some are not


@pytest.mark.parametrize("focus", [False, True])
def test_only_runs_that_go_further_draw_faint_pictures(focus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    noted = _noting(data.sample, lambda named: asked.append((named["focus"], named["faint"])))
    monkeypatch.setattr(data, "sample", noted)
    monkeypatch.setattr(supply, "sample", noted)
    assets = drawn_assets()
    for _ in islice(training_pairs(assets, 5, 32, focus=focus), 40):
        pass
    for index in range(40):
        supply.squashed(assets, 5, index, 32, focus)
    assert {whether for whether, _ in asked} == {focus}
    for of_one in (asked[:40], asked[40:]):
        assert (8 < sum(faint for _, faint in of_one) < 32) is focus
        assert focus or not any(faint for _, faint in of_one)


@pytest.mark.parametrize("focus", [False, True])
def test_only_runs_that_go_further_draw_borders(focus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(data, "composed", _noting(data.composed, lambda named: asked.append(named["bordered"])))
    assets = drawn_assets()
    for index in range(60):
        data.sample(assets, 5, index, 32, focus=focus)
    assert (8 < sum(asked) < 32) is focus
    assert focus or not any(asked)


def _noting(plain: Callable[..., Any], note: Callable[[dict[str, Any]], None]) -> Callable[..., Any]:
    """A function that does what another does, and notes its arguments by name."""

    def noted(*arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(plain).bind(*arguments, **named)
        bound.apply_defaults()
        note(bound.arguments)
        return plain(*arguments, **named)

    return noted
