"""Which transparency is art that was cut out, and which is only the frame of a photograph."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.images.own_alpha import is_cut_out

Array = np.ndarray[Any, Any]
WIDTH, HEIGHT = 800, 1000


def filled(*corners: tuple[int, int], size: tuple[int, int] = (HEIGHT, WIDTH)) -> Array:
    return cv2.fillPoly(np.zeros(size, np.uint8), [np.array(corners)], (255.0,))


def turned(degrees: float, width: int = 500, height: int = 600) -> Array:
    return filled(*cv2.boxPoints(((WIDTH / 2, HEIGHT / 2), (width, height), degrees)).astype(int).tolist())


def straightened(degrees: float) -> Array:
    """A whole photograph, turned, on a canvas that just holds it: an editor's "straighten"."""
    angle = np.deg2rad(degrees)
    width, height = (round(a * np.cos(angle) + b * np.sin(angle)) for a, b in ((WIDTH, HEIGHT), (HEIGHT, WIDTH)))
    corners = cv2.boxPoints(((width / 2, height / 2), (WIDTH, HEIGHT), degrees)).astype(int).tolist()
    return filled(*corners, size=(height, width))


def oval(width: int, height: int) -> Array:
    return cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), ((400, 500), (width, height), 0), (255.0,), -1)


def rounded(radius: int) -> Array:
    inner = np.zeros((HEIGHT, WIDTH), np.uint8)
    inner[30 + radius : -30 - radius, 30 + radius : -30 - radius] = 255
    return np.asarray(cv2.dilate(inner, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)))


def with_specks(alpha: Array) -> Array:
    out = alpha.copy()
    out[[2, 3, -3], [2, -3, 5]] = 255
    return out


def keyed() -> Array:
    """A photograph at twice the size; the colour that a GIF gave up was in a sixth of its pixels."""
    kept = np.random.default_rng(0).random((2 * HEIGHT, 2 * WIDTH)) > 1 / 6
    return np.where(kept, cv2.resize(turned(5), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST), np.uint8(0))


def lettering() -> Array:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    for y, words in ((300, "HELLO"), (500, "WORLD"), (700, "ill. |||")):
        cv2.putText(alpha, words, (60, y), cv2.FONT_HERSHEY_SIMPLEX, 6, (255.0,), 40, cv2.LINE_AA)
    return alpha


def star() -> Array:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] - np.array([HEIGHT / 2, WIDTH / 2])[:, None, None]
    inside = np.hypot(x, y) < 220 + 120 * np.cos(5 * np.arctan2(y, x))
    return np.where(inside, np.uint8(255), np.uint8(0))


def ring() -> Array:
    return cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (400, 500), 300, (255.0,), 40, cv2.LINE_AA)


def dots() -> Array:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    for y in range(100, 1000, 100):
        for x in range(100, 800, 100):
            cv2.circle(alpha, (x, y), 30, (255.0,), -1, cv2.LINE_AA)
    return alpha


FRAMES: dict[str, Callable[[], Array]] = {
    "clear margins": lambda: turned(0, 700, 900),
    "clear margins and stray pixels in the corners": lambda: with_specks(turned(0, 700, 900)),
    "turned by 5 degrees": lambda: turned(5),
    "turned by 30 degrees": lambda: turned(30),
    "straightened by 6 degrees": lambda: straightened(6),
    "a round crop": lambda: oval(700, 700),
    "an oval crop with stray pixels": lambda: with_specks(oval(500, 800)),
    "rounded corners": lambda: rounded(60),
    "very rounded corners": lambda: rounded(360),
    "a corner gone, at the border": lambda: filled((500, 0), (799, 0), (799, 999), (0, 999), (0, 600)),
    "a corner gone, with margins": lambda: filled((400, 50), (750, 50), (750, 950), (50, 950), (50, 500)),
    "two photographs side by side": lambda: (
        filled((60, 90), (330, 90), (330, 900), (60, 900)) | filled((470, 90), (740, 90), (740, 900), (470, 900))
    ),
    "a line of text below": lambda: cv2.putText(
        turned(4), "summer 2026", (120, 930), cv2.FONT_HERSHEY_SIMPLEX, 3, (255.0,), 12, cv2.LINE_AA
    ),
    "soft borders": lambda: np.asarray(cv2.GaussianBlur(turned(0, 500, 700), (0, 0), 30)),
    "clear on one side only": lambda: filled((40, 0), (799, 0), (799, 999), (40, 999)),
    "a colour keyed out all over it": keyed,
    "nothing visible": lambda: np.full((HEIGHT, WIDTH), 3, np.uint8),
}
ART: dict[str, Callable[[], Array]] = {
    "lettering": lettering,
    "a star": star,
    "a ring": ring,
    "a star and a disc": lambda: cv2.circle(star(), (660, 860), 110, (255.0,), -1, cv2.LINE_AA),
    "many dots": dots,
    "one hairline": lambda: cv2.line(np.zeros((HEIGHT, WIDTH), np.uint8), (50, 50), (700, 900), (255.0,)),
    "a star on faint dust": lambda: np.maximum(star(), np.uint8(2)),
    "a star that runs off at one point": lambda: star()[170:],
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_photograph_in_a_frame_is_still_to_be_cut(name: str) -> None:
    assert not is_cut_out(FRAMES[name]())


@pytest.mark.parametrize("name", ART)
def test_finished_art_is_known_by_its_outline(name: str) -> None:
    assert is_cut_out(ART[name]())


@pytest.mark.parametrize(
    "name", ["a round crop", "turned by 5 degrees", "clear margins and stray pixels in the corners"]
)
def test_a_frame_is_one_at_the_size_of_a_print_too(name: str) -> None:
    large = np.asarray(cv2.resize(FRAMES[name](), (4320, 5400), interpolation=cv2.INTER_NEAREST), np.uint8)
    assert not is_cut_out(large)


def test_an_opaque_picture_is_not_cut_out() -> None:
    assert not is_cut_out(None)
    assert not is_cut_out(np.full((7, 5), 255, np.uint8))


@given(st.integers(1, 40), st.sampled_from([1, 2, 3, 40, 1500]), st.booleans(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_nothing_is_cut_out_of_any_size_without_clear_and_visible_pixels(
    short: int, long: int, is_tall: bool, seed: int
) -> None:
    size = (long, short) if is_tall else (short, long)
    alpha = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    assert not is_cut_out(alpha) or ((alpha > 8).any() and (alpha <= 8).any())
