"""The pure functions at the sizes that printers use, and at the longest and thinnest ones."""

import io
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from worker.images import cut_out, decode, encode_png, mask_at_size, network_input
from worker.images.detail import art_box
from worker.images.holes import punch_holes
from worker.images.own_alpha import is_cut_out
from worker.images.preflight import preflight
from worker.images.print_spec import AlphaMode, PrintSpec
from worker.images.printing import render_print
from worker.images.proofs import encode_webp, flatten, mask_of, proof, shrink, thumbnail

Array = np.ndarray[Any, Any]
SIZES = [
    pytest.param((5400, 5400), marks=pytest.mark.slow),
    (1, 5400),
    (5400, 1),
    (3, 5399),
    (5399, 2),
]


def sheet(width: int, height: int) -> tuple[Array, Array]:
    """Black rings on white with their true alpha (0..1, filled: what a network gives), scaled to the size."""
    ink = np.zeros((height, width), np.uint8)
    radius = max(1, min(width, height) // 7)
    for x, y in ((width // 4, height // 4), (width * 3 // 4, height * 2 // 3)):
        cv2.circle(ink, (x, y), radius, 255, max(1, radius // 3), cv2.LINE_AA)
    contours, _ = cv2.findContours((ink > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = ink.copy()
    cv2.drawContours(filled, contours, -1, 255, -1)
    rgb = cv2.cvtColor(cv2.bitwise_not(ink), cv2.COLOR_GRAY2RGB)
    return np.asarray(rgb, np.uint8), np.asarray(filled / np.float32(255), np.float32)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_every_step_from_file_to_print(size: tuple[int, int]) -> None:
    width, height = size
    rgb, filled = sheet(width, height)
    picture = decode(b"".join(encode_png(rgb, (300, 300))), pixel_limit=64_000_000)
    assert (picture.rgb == rgb).all()
    assert not is_cut_out(picture.alpha)
    assert network_input(picture, 64, torch.device("cpu")).shape == (1, 3, 64, 64)
    assert mask_at_size(torch.ones(64, 64), height, width).shape == (height, width)
    box = art_box(torch.eye(64)[20:40].repeat(3, 1), height, width, worth=1)
    assert box is not None
    assert 0 <= box[0] < box[2] <= height
    assert 0 <= box[1] < box[3] <= width

    holes = punch_holes(picture, filled)
    assert (holes.mask <= filled).all()
    cutout = cut_out(picture, torch.from_numpy(holes.mask))
    assert not cutout[cutout[..., 3] == 0].any()
    if min(size) > 1000:
        assert holes.count == 2
        assert cutout[height // 4, width // 4, 3] == 0

    report = preflight(cutout, dpi=(300, 300))
    assert report["size_px"] == [width, height]
    assert (np.asarray(Image.open(io.BytesIO(b"".join(encode_png(cutout)))))[..., 3] == mask_of(cutout)).all()
    assert flatten(cutout, "#ff0000").shape == (height, width, 3)
    small = shrink(cutout, 640)
    assert max(small.shape) <= 640
    for picture_for_eyes in (proof(small, "heather", 640), thumbnail(small)):
        assert encode_webp(picture_for_eyes)


@pytest.mark.parametrize("mode", get_args(AlphaMode))
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_every_alpha_mode_prints_what_it_is_given(size: tuple[int, int], mode: AlphaMode) -> None:
    """In the mode's own terms: coverage is kept to 2 %, and a white plate never looks out."""
    width, height = size
    cutout = np.zeros((height, width, 4), np.uint8)
    cutout[..., :3] = (200, 40, 90)
    across = np.linspace(0, 255, width) if width > 1 else np.array([255.0])
    cutout[..., 3] = np.minimum(across[None] * 1.3, 255).astype(np.uint8)
    cutout[cutout[..., 3] == 0] = 0
    spec = PrintSpec(canvas=(5400, 5400) if min(size) > 1000 else (60, 50), alpha=mode, choke_px=0, underbase=True)
    result = render_print(cutout, spec)
    printed = result.image[..., 3]
    assert result.underbase is not None
    assert (result.underbase <= printed).all()
    assert not result.image[printed == 0].any()
    assert mode == "soft" or set(np.unique(printed)) <= {0, 255}
    if min(size) > 1000:
        expected = cutout[..., 3].mean() if mode != "hard" else (cutout[..., 3] >= 128).mean() * 255
        assert printed.mean() == pytest.approx(expected, rel=0.02)
