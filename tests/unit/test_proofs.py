"""Proofs, thumbnails, contact sheets and flat outputs: exact where exactness is possible, antialiased elsewhere."""

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from worker.images.opinion import second_opinion
from worker.images.proofs import WEBP_SIDE, encode_webp, flatten, mask_of, proof, shrink, thumbnail
from worker.images.sheet import SheetRow, contact_sheet

Array = np.ndarray[Any, Any]

SIZES = st.sampled_from([(1, 1), (1, 300), (300, 1), (2, 3), (33, 57), (131, 67)])
GROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "#12ab9F": (0x12, 0xAB, 0x9F)}


def random_cutout(size: tuple[int, int], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    cutout = rng.integers(0, 256, (*size, 4), dtype=np.uint8)
    cutout[..., 3] = rng.choice([0, 60, 200, 255], size)
    return cutout


def over(cutout: Array, ground: Any) -> Array:
    """The definition, in floats."""
    alpha = cutout[..., 3:] / 255.0
    out: Array = cutout[..., :3] * alpha + np.asarray(ground) * (1 - alpha)
    return out


class TestProofs:
    @pytest.mark.parametrize("name", GROUNDS)
    @given(size=SIZES, seed=st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=25)
    def test_a_small_cutout_is_blended_within_a_level(self, name: str, size: tuple[int, int], seed: int) -> None:
        cutout = random_cutout(size, seed)
        out = proof(cutout, name)
        assert np.abs(out - over(cutout, GROUNDS[name])).max() <= 1.01
        opaque, clear = cutout[..., 3] == 255, cutout[..., 3] == 0
        assert (out[opaque] == cutout[opaque, :3]).all()
        assert (out[clear] == GROUNDS[name]).all()

    @given(SIZES, st.integers(1, 70), st.sampled_from(["black", "white", "heather", "#808080"]))
    @settings(deadline=None, max_examples=50)
    def test_any_size_fits_into_the_long_side(self, size: tuple[int, int], long_side: int, name: str) -> None:
        out = proof(random_cutout(size, 0), name, long_side)
        assert out.ndim == 3
        assert out.shape[2] == 3
        assert max(out.shape[:2]) == min(long_side, max(size))
        assert min(out.shape[:2]) >= 1

    def test_opaque_art_keeps_its_exact_colour_when_it_shrinks(self) -> None:
        cutout = np.zeros((600, 500, 4), np.uint8)
        cutout[100:500, 100:400] = (201, 33, 77, 255)
        out = proof(cutout, "heather", 120)
        assert out.shape == (120, 100, 3)
        assert (out[25:95, 25:75] == (201, 33, 77)).all()

    @pytest.mark.parametrize("long_side", [20, 64, 200])
    def test_hidden_colours_do_not_bleed_into_shrunken_edges(self, long_side: int) -> None:
        """Red art beside transparent green: every visible pixel stays red."""
        cutout = np.zeros((330, 330, 4), np.uint8)
        cutout[..., 1] = 255
        cutout[75:201, 75:201] = (255, 0, 0, 255)
        small = shrink(cutout, long_side)
        visible = small[..., 3] > 8
        assert (small[visible][:, 0] > 240).all()
        assert (small[visible][:, 1] == 0).all()
        assert not small[small[..., 3] == 0].any()

    def test_shrinking_keeps_the_mean_coverage(self) -> None:
        cutout = random_cutout((517, 403), 3)
        assert mask_of(shrink(cutout, 50)).mean() == pytest.approx(mask_of(cutout).mean(), abs=1.5)

    def test_heather_is_the_same_every_time_and_looks_like_grey_cloth(self) -> None:
        clear = np.zeros((600, 700, 4), np.uint8)
        cloth = proof(clear, "heather", 700)
        assert (cloth == proof(clear, "heather", 700)).all()
        assert (cloth[:100, :100] == proof(clear[:100, :100], "heather")).all()
        # The very bytes, on every machine: the pattern is made of integers only.
        assert zlib.crc32(cloth[:512, :512].tobytes()) == 2251937266
        assert cloth.reshape(-1, 3).mean(axis=0) == pytest.approx([165, 165, 168], abs=1)
        assert 5 < cloth[..., 0].std() < 20

    @pytest.mark.parametrize("name", ["", "blue", "#12345", "#1234567", "#gggggg", "black\n"])
    def test_unknown_backgrounds_are_refused_with_what_is_known(self, name: str) -> None:
        with pytest.raises(ValueError, match="use black, white, heather"):
            proof(np.zeros((2, 2, 4), np.uint8), name)

    def test_the_cutout_is_left_as_it_was(self) -> None:
        cutout = random_cutout((200, 150), 1)
        before = cutout.copy()
        proof(cutout, "heather", 64)
        flatten(cutout, "white")
        assert (cutout == before).all()

    def test_thumbnails_are_small_and_transparent(self) -> None:
        small = thumbnail(np.zeros((600, 300, 4), np.uint8))
        assert small.shape == (256, 128, 4)
        assert not small.any()

    @pytest.mark.parametrize("picture", [np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2, 4), np.uint8)])
    def test_other_arrays_are_refused(self, picture: Array) -> None:
        uses: list[Callable[[], Array]] = [
            lambda: shrink(picture, 9),
            lambda: mask_of(picture),
            lambda: flatten(picture, "white"),
            lambda: proof(picture, "white"),
        ]
        for use in uses:
            with pytest.raises(ValueError, match="cutout"):
                use()

    def test_a_side_below_one_pixel_is_refused(self) -> None:
        with pytest.raises(ValueError, match="long_side"):
            shrink(np.zeros((2, 2, 4), np.uint8), 0)


class TestOutputs:
    @given(SIZES, st.integers(0, 2**32 - 1), st.sampled_from(sorted(GROUNDS)))
    @settings(deadline=None, max_examples=40)
    def test_flattened_pictures_are_blended_within_a_level(self, size: tuple[int, int], seed: int, name: str) -> None:
        cutout = random_cutout(size, seed)
        out = flatten(cutout, name)
        assert out.shape == (*size, 3)
        assert np.abs(out - over(cutout, GROUNDS[name])).max() <= 1.01

    def test_flattening_on_heather_is_the_proof_at_full_size(self) -> None:
        cutout = random_cutout((70, 90), 5)
        assert (flatten(cutout, "heather") == proof(cutout, "heather")).all()

    @given(SIZES, st.integers(0, 99))
    @settings(deadline=None, max_examples=20)
    def test_the_mask_is_the_alpha(self, size: tuple[int, int], seed: int) -> None:
        cutout = random_cutout(size, seed)
        assert (mask_of(cutout) == cutout[..., 3]).all()


class TestWebp:
    @given(SIZES, st.sampled_from([0, 3, 4]), st.sampled_from([None, 0, 80, 100]))
    @settings(deadline=None, max_examples=30)
    def test_every_shape_is_written_at_its_size(
        self, size: tuple[int, int], channels: int, quality: int | None
    ) -> None:
        pixels = random_cutout(size, 7)
        pixels = pixels[..., 0] if channels == 0 else pixels[..., :channels]
        image = Image.open(io.BytesIO(encode_webp(pixels, quality)))
        assert image.size == (size[1], size[0])
        assert image.format == "WEBP"

    @given(SIZES, st.integers(0, 99))
    @settings(deadline=None, max_examples=20)
    def test_lossless_files_keep_every_visible_pixel(self, size: tuple[int, int], seed: int) -> None:
        cutout = random_cutout(size, seed)
        back = np.asarray(Image.open(io.BytesIO(encode_webp(cutout, None))).convert("RGBA"))
        assert (back[..., 3] == cutout[..., 3]).all()
        visible = cutout[..., 3] > 0
        assert (back[visible] == cutout[visible]).all()

    def test_lossy_files_look_the_same(self) -> None:
        y, x = np.mgrid[0:60, 0:80]
        rgb = np.stack((x * 3, y * 4, x + y), axis=-1).astype(np.uint8)
        back = np.asarray(Image.open(io.BytesIO(encode_webp(rgb, 90))))
        assert np.abs(back.astype(int) - rgb).mean() < 4

    @pytest.mark.parametrize(
        ("pixels", "quality", "words"),
        [
            (np.zeros((2, 2), np.float32), 80, "as WebP"),
            (np.zeros((2, 2, 2), np.uint8), 80, "as WebP"),
            (np.zeros((0, 2), np.uint8), 80, "as WebP"),
            (np.zeros((1, WEBP_SIDE + 1), np.uint8), 80, "use PNG"),
            (np.zeros((2, 2), np.uint8), 101, "quality"),
        ],
    )
    def test_what_webp_can_not_hold_is_refused(self, pixels: Array, quality: int, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            encode_webp(pixels, quality)


class TestContactSheets:
    @staticmethod
    def cutout(colour: tuple[int, int, int] = (200, 30, 40)) -> Array:
        cutout = np.zeros((150, 120, 4), np.uint8)
        cutout[30:120, 20:100] = (*colour, 255)
        return cutout

    def test_every_model_is_shown_on_every_background(self) -> None:
        """Two models are two rows of three proofs: black, white and heather around the same red block."""
        row = SheetRow(np.full((150, 120, 3), 99, np.uint8), {"a": self.cutout(), "b": self.cutout((30, 60, 220))})
        sheet = contact_sheet({"front": row})
        red, blue = ((sheet == colour).all(axis=-1).sum() for colour in ((200, 30, 40), (30, 60, 220)))
        assert red == blue == 3 * 90 * 80
        assert (sheet == 0).all(axis=-1).sum() >= 2 * (150 * 120 - 90 * 80)

    def test_sides_stand_below_each_other(self) -> None:
        row = SheetRow(np.full((150, 120, 3), 99, np.uint8), {"a": self.cutout()})
        one, two = contact_sheet({"front": row}), contact_sheet({"front": row, "back": row})
        assert two.shape[1] == one.shape[1]
        assert two.shape[0] > 1.8 * one.shape[0]

    def test_disputed_places_are_boxed_on_the_original(self) -> None:
        whole, part = self.cutout(), self.cutout()
        part[90:] = 0
        opinion = second_opinion({"a": mask_of(whole), "b": mask_of(part)})
        rows = {"a": whole, "b": part}
        original = np.full((150, 120, 3), 99, np.uint8)
        plain = contact_sheet({"front": SheetRow(original, rows)})
        marked = contact_sheet({"front": SheetRow(original, rows, opinion, {"a": "ok", "b": "fail"})})
        box_red = (224, 32, 32)
        assert not (plain == box_red).all(axis=-1).any()
        assert (marked == box_red).all(axis=-1).any()

    @given(SIZES, SIZES, st.integers(0, 3))
    @settings(deadline=None, max_examples=15)
    def test_any_sizes_and_numbers_of_models_make_a_sheet(
        self, size: tuple[int, int], other: tuple[int, int], models: int
    ) -> None:
        cutouts = {f"m{index}": random_cutout(size, index) for index in range(models)}
        sheet = contact_sheet({"front": SheetRow(random_cutout(other, 9), cutouts)})
        assert sheet.dtype == np.uint8
        assert sheet.shape[2] == 3

    def test_a_long_sentence_is_not_cut_off(self) -> None:
        row = SheetRow(np.full((90, 60, 3), 99, np.uint8), {"a": self.cutout()})
        reason = "the models differ in so many places that " * 4
        opinion = {"needs_review": True, "review_reason": reason, "pairs": []}
        short = contact_sheet({"front": row})
        long = contact_sheet({"front": SheetRow(row.prepared, row.cutouts, opinion)})
        assert long.shape[1] > short.shape[1]
        assert (long[:, -8:] == 255).all()

    def test_an_extracted_design_stands_beside_its_original(self) -> None:
        green, blue = np.full((150, 120, 3), (10, 140, 40), np.uint8), np.full((150, 120, 3), (20, 40, 160), np.uint8)
        cutouts = {"a": self.cutout(), "b": self.cutout()}
        plain = contact_sheet({"front": SheetRow(blue, cutouts)})
        sheet = contact_sheet({"front": SheetRow(blue, cutouts, original=green)})
        is_green, is_blue = ((sheet == colour).all(axis=-1) for colour in ((10, 140, 40), (20, 40, 160)))
        assert is_green.sum() == is_blue.sum() == 150 * 120
        assert np.nonzero(is_green)[1].max() < np.nonzero(is_blue)[1].min(), "the original is the left one"
        assert sheet.shape[1] > plain.shape[1]
        assert sheet.shape[0] == plain.shape[0]

    def test_a_sheet_without_sides_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one side"):
            contact_sheet({})
