"""Prepared sides: what cells ask of one side, however many of them there are."""

import hashlib
from pathlib import Path

import cv2
import numpy as np

from shared.storage import FolderStorage
from worker.budget import PixelBudget
from worker.pictures import PreparedSides

JOB_ID = "a" * 32


def picture(level: int) -> bytes:
    """A PNG file; all levels make files of one size."""
    return bytes(cv2.imencode(".png", np.full((8, 8, 3), level, np.uint8))[1])


def test_a_side_that_is_prepared_anew_has_the_digest_of_its_new_file(tmp_path: Path) -> None:
    """Given a digest that is remembered, when the file is replaced by one of equal size, then it is read again."""
    sides = PreparedSides(
        FolderStorage(tmp_path, "http://service.test"), PixelBudget(10**6), pixel_limit=10**6, cache_bytes=10**6
    )
    first, second = picture(10), picture(20)
    assert len(first) == len(second)
    for data in (first, second):
        sides.save(JOB_ID, "front", data)
        expected = hashlib.sha256(data).hexdigest()
        assert [sides.digest(JOB_ID, "front") for _ in range(2)] == [expected, expected]
