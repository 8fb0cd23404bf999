"""Second opinions: masks with known overlap, who is recommended, and when a person must look."""

import json
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.images.opinion import OpinionJson, own_alpha_opinion, second_opinion
from worker.images.preflight import preflight

Array = np.ndarray[Any, Any]


def box(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (100, 200)) -> Array:
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def report(**levels: str) -> Any:
    return {"checks": [{"name": name, "level": level} for name, level in levels.items()]}


ART = box(40, 20, 160, 80)
NOTHING = np.zeros((100, 200), np.uint8)
ALL = np.full((100, 200), 255, np.uint8)
VAGUE = np.where(ART > 0, 170, 0).astype(np.uint8)


class TestAgreement:
    def test_half_overlapping_boxes_have_an_iou_of_a_third(self) -> None:
        opinion = second_opinion({"a": box(0, 0, 100, 100), "b": box(50, 0, 150, 100)})
        assert opinion["agreement"] == pytest.approx(1 / 3, abs=1e-4)
        assert opinion["pairs"][0]["mean_difference"] == pytest.approx(0.5)
        assert opinion["pairs"][0]["disputed"] == pytest.approx(2 / 3, abs=1e-4)

    def test_disagreements_are_told_in_relative_coordinates_largest_first(self) -> None:
        other = ART.copy()
        other[80:90, 40:160] = 255  # added below
        other[5:10, 180:200] = 255  # and a bit in the corner
        regions = second_opinion({"a": ART, "b": other})["pairs"][0]["regions"]
        assert [region["box"] for region in regions] == [[0.2, 0.8, 0.8, 0.9], [0.9, 0.05, 1, 0.1]]
        assert [region["share"] for region in regions] == [0.06, 0.005]

    def test_lost_letters_make_one_region(self) -> None:
        text = NOTHING.copy()
        for letter in range(8):
            text[90:97, 40 + 8 * letter : 45 + 8 * letter] = 255
        regions = second_opinion({"a": ART | text, "b": ART})["pairs"][0]["regions"]
        assert [region["box"] for region in regions] == [[0.2, 0.9, 0.505, 0.97]]

    def test_an_edge_that_is_a_pixel_apart_is_no_dispute(self) -> None:
        pair = second_opinion({"a": ART, "b": box(41, 21, 159, 79)})["pairs"][0]
        assert pair["iou"] < 1
        assert pair["disputed"] == 0
        assert pair["regions"] == []

    def test_floats_and_bytes_mean_the_same(self) -> None:
        assert second_opinion({"a": ART, "b": VAGUE}) == second_opinion({"a": ART / 255, "b": VAGUE / 255})

    @given(
        st.sampled_from([(1, 1), (1, 300), (300, 1), (2, 3), (33, 57)]),
        st.integers(0, 2**32 - 1),
        st.integers(0, 4),
        st.booleans(),
    )
    @settings(deadline=None, max_examples=80)
    def test_any_masks_give_a_whole_opinion(self, size: tuple[int, int], seed: int, count: int, binary: bool) -> None:
        rng = np.random.default_rng(seed)
        masks = {f"m{index}": rng.integers(0, 256, size, dtype=np.uint8) for index in range(count)}
        if binary:
            masks = {name: np.where(mask > 127, 255, 0).astype(np.uint8) for name, mask in masks.items()}
        opinion = second_opinion(masks)
        assert json.loads(json.dumps(opinion, allow_nan=False)) == opinion
        assert len(opinion["pairs"]) == count * (count - 1) // 2
        assert (opinion["recommended"] in masks) == bool(masks)
        assert opinion["reason"].endswith(".")
        assert opinion["needs_review"] == bool(opinion["review_reason"])
        for pair in opinion["pairs"]:
            assert 0 <= pair["iou"] <= 1
            assert 0 <= pair["disputed"] <= 1
            for region in pair["regions"]:
                left, top, right, bottom = region["box"]
                assert 0 <= left < right <= 1
                assert 0 <= top < bottom <= 1

    @given(st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=30)
    def test_a_mask_agrees_fully_with_itself(self, seed: int) -> None:
        mask = np.random.default_rng(seed).integers(0, 256, (40, 30), dtype=np.uint8)
        pair = second_opinion({"a": mask, "b": mask.copy()})["pairs"][0]
        assert (pair["iou"], pair["mean_difference"], pair["disputed"], pair["regions"]) == (1, 0, 0, [])

    @pytest.mark.parametrize("other", [np.zeros((5, 5), np.uint8), np.zeros((100, 200, 1), np.uint8)])
    def test_masks_of_other_sizes_are_refused(self, other: Array) -> None:
        with pytest.raises(ValueError, match="mask"):
            second_opinion({"a": ART, "b": other})


class TestRecommendation:
    def test_one_model_alone_is_recommended_without_an_agreement(self) -> None:
        opinion = second_opinion({"only": ART})
        assert (opinion["agreement"], opinion["recommended"], opinion["needs_review"]) == (None, "only", False)

    def test_without_any_cutout_nobody_is_recommended(self) -> None:
        opinion = second_opinion({})
        assert (opinion["recommended"], opinion["needs_review"]) == (None, True)

    @pytest.mark.parametrize(("bad", "words"), [(NOTHING, "kept nothing"), (ALL, "removed nothing")])
    def test_a_model_that_found_the_design_beats_one_that_did_not(self, bad: Array, words: str) -> None:
        opinion = second_opinion({"bad": bad, "good": ART}, {"bad": report(), "good": report(halo="fail")})
        assert opinion["recommended"] == "good"
        assert words in opinion["reason"]

    def test_fewer_failed_print_checks_win_before_fewer_warnings(self) -> None:
        opinion = second_opinion(
            {"a": ART, "b": ART},
            {"a": report(soft_pixels="fail"), "b": report(halo="warn", islands="warn")},
        )
        assert opinion["recommended"] == "b"
        assert opinion["reason"] == "b fails fewer print checks (none) than a (soft pixels)."

    def test_what_the_source_caused_is_not_held_against_a_model(self) -> None:
        opinion = second_opinion({"a": ART, "b": ART}, {"a": report(resolution="fail"), "b": report()})
        assert opinion["recommended"] == "a"

    def test_a_missing_or_empty_print_check_is_no_criterion(self) -> None:
        for preflights in ({"b": report()}, {"a": {}, "b": report()}, None):
            assert second_opinion({"a": ART, "b": ART}, preflights)["recommended"] == "a"

    def test_of_three_the_one_that_agrees_least_is_not_taken(self) -> None:
        opinion = second_opinion({"odd": box(40, 20, 160, 50), "b": ART, "c": ART})
        assert opinion["recommended"] == "b"

    def test_the_more_decided_mask_wins(self) -> None:
        opinion = second_opinion({"vague": VAGUE, "crisp": ART})
        assert opinion["recommended"] == "crisp"
        assert "decides more clearly" in opinion["reason"]
        assert opinion["models"]["crisp"]["decisiveness"] == 1

    @pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
    def test_equals_are_decided_by_the_order_given(self, order: tuple[str, str]) -> None:
        opinion = second_opinion(dict.fromkeys(order, ART))
        assert opinion["recommended"] == order[0]
        assert "equally good" in opinion["reason"]


class TestFades:
    """A soft glow around a block, kept by one model and lost by the other, each with its real preflight."""

    @staticmethod
    def glow() -> Array:
        y, x = np.mgrid[0:200, 0:400]
        distance = np.hypot(np.maximum(np.abs(x - 200) - 100, 0), np.maximum(np.abs(y - 100) - 40, 0))
        return (np.where(distance == 0, 1, 0.6 * np.clip(1 - distance / 40, 0, 1)) * 255).astype(np.uint8)

    def opinion(self, print_alpha: Any) -> OpinionJson:
        masks = {"lost": np.where(self.glow() == 255, 255, 0).astype(np.uint8), "kept": self.glow()}
        cutouts = {name: np.dstack((*[np.where(mask > 0, 90, 0)] * 3, mask)) for name, mask in masks.items()}
        preflights = {
            name: preflight(cutout.astype(np.uint8), print_dpi=300, print_alpha=print_alpha)
            for name, cutout in cutouts.items()
        }
        return second_opinion(masks, preflights, fades_wanted=print_alpha == "halftone")

    def test_a_halftone_takes_the_model_that_kept_the_glow(self) -> None:
        opinion = self.opinion("halftone")
        assert opinion["recommended"] == "kept"
        assert "keeps more of the art's fades" in opinion["reason"]
        assert opinion["needs_review"]

    @pytest.mark.parametrize("print_alpha", ["soft", "hard"])
    def test_other_prints_take_the_one_without(self, print_alpha: str) -> None:
        assert self.opinion(print_alpha)["recommended"] == "lost"

    def test_soft_edges_alone_are_no_fade(self) -> None:
        """Edges of 4 px, as an enlarged mask has them, do not beat crisp ones when a halftone is asked for."""
        soft = np.asarray(cv2.blur(ART, (4, 4)), np.uint8)
        opinion = second_opinion({"crisp": ART, "soft": soft}, fades_wanted=True)
        assert opinion["recommended"] == "crisp"
        assert "equally good" in opinion["reason"]


class TestReview:
    @staticmethod
    def against_the_art(mask: Array) -> OpinionJson:
        return second_opinion({"a": ART, "b": mask})

    def test_agreeing_models_need_none(self) -> None:
        assert not self.against_the_art(box(41, 21, 159, 79))["needs_review"]

    def test_a_low_overlap_needs_one(self) -> None:
        opinion = self.against_the_art(box(40, 20, 140, 80))
        assert opinion["agreement"] == pytest.approx(100 / 120, abs=1e-4)
        assert "overlap by only 83%" in opinion["review_reason"]

    def test_a_lost_line_of_lettering_needs_one_though_the_overlap_is_high(self) -> None:
        opinion = self.against_the_art(ART | box(40, 90, 140, 94))
        assert opinion["agreement"] is not None
        assert opinion["agreement"] > 0.94
        assert "dispute 5.3% of the art" in opinion["review_reason"]

    def test_a_lost_glow_needs_one_though_the_outlines_are_the_same(self) -> None:
        opinion = self.against_the_art(np.maximum(ART, box(20, 5, 180, 95) // 3))
        assert opinion["agreement"] == 1
        assert "soft areas" in opinion["review_reason"]

    @pytest.mark.parametrize("mask", [NOTHING, ALL])
    def test_an_empty_or_full_mask_beside_a_good_one_needs_one(self, mask: Array) -> None:
        opinion = self.against_the_art(mask)
        assert opinion["needs_review"]
        assert "the other models did not" in opinion["review_reason"]

    def test_two_empty_masks_agree_and_need_one(self) -> None:
        opinion = second_opinion({"a": NOTHING, "b": NOTHING})
        assert (opinion["agreement"], opinion["needs_review"]) == (1, True)

    def test_an_empty_mask_alone_needs_one(self) -> None:
        assert second_opinion({"a": NOTHING})["needs_review"]


class TestOwnAlpha:
    """Art that kept its own alpha: nothing was compared, and the opinion does not pretend so."""

    def test_no_agreement_is_claimed_and_the_reason_is_told(self) -> None:
        opinion = own_alpha_opinion({"rmbg": ART, "birefnet": ART})
        assert opinion["agreement"] is None
        assert opinion["pairs"] == []
        assert opinion["recommended"] == "rmbg"
        assert opinion["reason"] == (
            "The artwork came already cut out and kept its own alpha; no model was run, "
            "so rmbg and birefnet are the same picture."
        )
        assert not opinion["needs_review"]
        assert opinion["models"] == second_opinion({"rmbg": ART, "birefnet": ART})["models"]

    def test_art_that_is_hardly_visible_needs_a_look_but_no_model_is_blamed(self) -> None:
        opinion = own_alpha_opinion({"rmbg": NOTHING})
        assert opinion["needs_review"]
        assert "rmbg" not in opinion["review_reason"]
