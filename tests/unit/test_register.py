"""The two checks around an extraction: which pictures are photographs of prints, which answers are redrawn."""

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks.mockups import Design, answer, load_designs, mockup, redrawn
from worker.images import Picture, decode
from worker.images.artwork import CUTOUT_SHARE, look_at
from worker.images.picture import Pixels
from worker.images.register import register

_LIMIT = 10**8


@pytest.fixture(scope="module")
def designs() -> list[Design]:
    return load_designs()


def pixels(data: bytes) -> Pixels:
    return decode(data, pixel_limit=_LIMIT).rgb


class TestLookAt:
    @pytest.mark.parametrize("ground", ["white", "plain", "gradient", "busy"])
    def test_a_printed_shirt_is_a_photograph_on_any_ground(self, designs: list[Design], ground: str) -> None:
        assert look_at(decode(mockup(designs[14], 4, ground), pixel_limit=_LIMIT)).kind == "photo"

    def test_artwork_on_a_plain_ground_is_flat(self, designs: list[Design]) -> None:
        assert look_at(decode(answer(designs[14], 4), pixel_limit=_LIMIT)).kind == "flat_artwork"

    def test_transparent_pixels_make_a_cutout_whatever_is_on_them(self, designs: list[Design]) -> None:
        rgb = pixels(mockup(designs[14], 4))
        alpha = np.full(rgb.shape[:2], 255, np.uint8)
        rows = round(rgb.shape[0] * CUTOUT_SHARE) + 1
        assert look_at(Picture(rgb, alpha)).kind == "photo"
        alpha[:rows] = 0
        assert look_at(Picture(rgb, alpha)).kind == "cutout"

    @pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 5)])
    def test_pictures_of_any_shape_are_looked_at(self, shape: tuple[int, int]) -> None:
        assert look_at(Picture(np.full((*shape, 3), 90, np.uint8), None)).kind == "flat_artwork"


class TestRegister:
    def test_the_design_is_put_where_it_was(self) -> None:
        """A pattern that only fits in one way, at a known place: it must land within a pixel or two."""
        rng = np.random.default_rng(2)
        art = np.kron(rng.integers(0, 200, (12, 10, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))  # 192x160
        original = np.full((600, 500, 3), 235, np.uint8)
        original[220:412, 140:300] = art
        sent_back = np.full((1024, 768, 3), 255, np.uint8)
        large = np.asarray(Image.fromarray(art).resize((480, 576), Image.Resampling.BICUBIC))
        sent_back[300:876, 100:580] = large
        found = register(sent_back, original)
        assert found.placed
        assert found.rgb.shape == original.shape
        difference = np.abs(found.rgb[220:412, 140:300].astype(int) - art)
        assert np.median(difference) <= 4
        assert found.rgb[:200].min() > 245, "around the art is the answer's own ground"
        assert found.score > 0.8

    def test_a_word_with_few_features_finds_its_place_too(self) -> None:
        original = np.full((300, 400, 3), 230, np.uint8)
        original[100:160, 220:340] = (200, 20, 40)
        sent_back = np.full((512, 512, 3), 255, np.uint8)
        sent_back[156:356, 56:456] = (200, 20, 40)
        found = register(sent_back, original)
        assert found.placed
        red = np.abs(found.rgb.astype(int) - (200, 20, 40)).max(axis=2) < 40
        ys, xs = np.nonzero(red)
        assert np.allclose((ys.min(), ys.max() + 1, xs.min(), xs.max() + 1), (100, 160, 220, 340), atol=4)

    def test_a_good_extraction_of_a_printed_shirt_is_not_flagged(self, designs: list[Design]) -> None:
        found = register(pixels(answer(designs[-1], 4)), pixels(mockup(designs[-1], 4, "plain")))
        assert not found.redrawn

    @pytest.mark.parametrize("kind", ["another design", "mirrored", "half replaced", "recoloured", "bent"])
    def test_a_redrawn_one_is(self, designs: list[Design], kind: str) -> None:
        photo = pixels(mockup(designs[-1], 4, "plain"))
        found = register(pixels(redrawn(designs[-1], designs[20], kind, 4)), photo)
        assert found.redrawn, found.score

    def test_an_empty_answer_is_fitted_into_the_frame_and_scores_nothing(self) -> None:
        found = register(np.full((64, 64, 3), 255, np.uint8), np.full((50, 90, 3), 120, np.uint8))
        assert (found.score, found.placed, found.redrawn) == (0.0, False, True)
        assert found.rgb.shape == (50, 90, 3)
        assert found.rgb.min() == 255

    def test_an_answer_far_larger_than_its_place_is_shrunk_evenly_and_cheaply(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Given 2048 px for a place of 64: a blur as wide as that takes minutes, single samples show lines."""
        widths: list[float] = []
        blur = cv2.GaussianBlur

        def watched(picture: Any, size: Any, sigma: float) -> Any:
            widths.append(sigma)
            return blur(picture, size, sigma)

        monkeypatch.setattr(cv2, "GaussianBlur", watched)
        fine = np.full((2048, 2048, 3), 255, np.uint8)
        fine[::2] = 55  # stripes that only an average shows rightly
        found = register(fine, np.full((64, 64, 3), 120, np.uint8))
        assert np.abs(found.rgb[4:-4, 4:-4].astype(int) - 155).max() <= 12
        assert widths
        assert max(widths) < 4

    @pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (2, 3), (2000, 30)])
    def test_pictures_of_any_shape_are_laid_over_each_other(self, shape: tuple[int, int]) -> None:
        rng = np.random.default_rng(1)
        odd = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        other = rng.integers(0, 256, (80, 60, 3), dtype=np.uint8)
        for first, second in ((odd, other), (other, odd), (odd, odd)):
            found = register(first, second)
            assert found.rgb.shape == second.shape
            assert 0 <= found.score <= 1
