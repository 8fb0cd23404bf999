"""The box of the second pass."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.images import Picture
from worker.images.detail import art_box, crop, full_mask


def test_small_art_gives_its_box_with_a_margin() -> None:
    mask = torch.zeros(64, 64)
    mask[16:32, 32:48] = 1
    assert art_box(mask, 640, 1280) == (134, 614, 346, 986)  # 160..320 x 640..960, 8 % of 320 around


def test_art_that_fills_the_picture_needs_no_second_pass() -> None:
    assert art_box(torch.ones(64, 64), 500, 500) is None


def test_art_of_most_of_the_picture_is_looked_at_once() -> None:
    """Its box and margin are 0.77 of it."""
    mask = torch.zeros(64, 64)
    mask[8:56, 8:56] = 1
    assert art_box(mask, 640, 640) is None
    assert art_box(mask, 640, 640, worth=1) is not None


def test_small_art_is_looked_at_again_from_nearer_and_lands_where_it_was() -> None:
    """The network stands for its input: dark is art. From afar 4 pixels wide, from near the exact edge."""
    rgb = np.full((400, 400, 3), 255, np.uint8)
    rgb[203:237, 101:139] = 0
    seen: list[tuple[int, int]] = []

    def run(part: Picture) -> torch.Tensor:
        seen.append(part.rgb.shape[:2])
        small = torch.from_numpy(part.rgb[..., 0]).float()[None, None]
        return 1 - torch.nn.functional.interpolate(small, size=(48, 48), mode="area")[0, 0] / 255

    truth = torch.from_numpy(rgb[..., 0] == 0).float()
    once = full_mask(Picture(rgb, None), run, detail=False)
    twice = full_mask(Picture(rgb, None), run, detail=True)
    assert seen[0] == seen[1] == (400, 400)
    assert max(seen[2]) < 60
    assert (twice - truth).abs().sum() < 0.5 * (once - truth).abs().sum()


def test_no_art_needs_none_either() -> None:
    assert art_box(torch.zeros(64, 64), 500, 500) is None


def test_faint_art_is_inside_the_box() -> None:
    mask = torch.zeros(64, 64)
    mask[20:30, 20:30] = 1
    mask[40, 40] = 0.2
    box = art_box(mask, 64, 64)
    assert box is not None
    assert box[2] > 40
    assert box[3] > 40


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 999))
@settings(deadline=None, max_examples=50)
def test_every_box_is_a_part_of_the_picture(height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    box = art_box((torch.rand(32, 32) > 0.998).float(), height, width)
    if box is not None:
        top, left, bottom, right = box
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        part = crop(Picture(np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.uint8)), box)
        assert (part.height, part.width) == (bottom - top, right - left)
        assert part.alpha is not None
        assert part.alpha.shape == part.rgb.shape[:2]
