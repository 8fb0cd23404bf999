"""What is made for eyes and printers looks as it did when it was looked at."""

import numpy as np
import pytest
from PIL import Image

from tests.golden.pictures import HERE, all_pictures, path


@pytest.mark.parametrize("name", all_pictures())
def test_a_picture_looks_as_it_did(name: str) -> None:
    """Other versions of OpenCV and FreeType round differently; a change that an eye could see is larger."""
    found = np.asarray(all_pictures()[name]())
    golden = np.asarray(Image.open(path(name)))
    assert found.shape == golden.shape
    difference = np.abs(found.astype(int) - golden)
    assert difference.mean() < 0.5
    assert (difference > 24).mean() < 0.002


def test_no_golden_picture_is_left_over() -> None:
    assert {file.stem for file in HERE.glob("*.png")} == set(all_pictures())
