"""The box of the second pass."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.images import Picture
from worker.images.detail import art_box, crop


def test_small_art_gives_its_box_with_a_margin() -> None:
    mask = torch.zeros(64, 64)
    mask[16:32, 32:48] = 1
    assert art_box(mask, 640, 1280) == (134, 614, 346, 986)  # 160..320 x 640..960, 8 % of 320 around


def test_art_that_fills_the_picture_needs_no_second_pass() -> None:
    assert art_box(torch.ones(64, 64), 500, 500) is None


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
