"""Edge colours: one text on two array libraries, against the known foreground."""

import numpy as np
import pytest
import torch

from benchmarks.edges import error, scene
from worker.images import Picture, clean_colours, cut_out


@pytest.mark.parametrize(
    ("kind", "limit"),
    # Measured 0.48, 1.76, 0.99 and 4.63 over four seeds (docs/benchmarks.md); no cleaning has 12 to 14 on each.
    [("flat", 0.8), ("photo", 2.6), ("hair", 1.7), ("glow", 6.5)],
)
def test_colours_of_soft_pixels_are_close_to_the_known_foreground(kind: str, limit: float) -> None:
    fore, alpha, composite = scene(512, kind, 1)
    cutout = cut_out(Picture(composite.astype(np.uint8), None), torch.from_numpy(alpha.astype(np.float32)))
    assert error(cutout[..., :3].astype(np.float64), fore, alpha)["white"] < limit


@pytest.mark.parametrize("size", [(300, 200), (37, 61), (3, 700), (1, 9)])
def test_numpy_and_torch_find_the_same_colours(size: tuple[int, int]) -> None:
    """The CPU's way starts from 8 bits and OpenCV's means, so a level here and there may differ."""
    height, width = size
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = rng.random((height, width)).astype(np.float32)
    alpha[alpha < 0.2], alpha[alpha > 0.8] = 0, 1
    levels = torch.from_numpy(alpha * 255).round() / 255
    device = clean_colours(torch.from_numpy(rgb), levels).numpy()
    cpu = cut_out(Picture(rgb, None), levels)
    visible = cpu[..., 3] > 0
    difference = np.abs(cpu[..., :3].astype(int) - device)[visible]
    assert difference.mean() < 1.0
    sure = cpu[..., 3] == 255
    assert np.array_equal(cpu[..., :3][sure], rgb[sure])


def test_colours_hidden_in_the_source_lend_themselves_to_nobody() -> None:
    """Given art with a soft edge beside transparent pixels, when their hidden colour changes, nothing else does."""
    own = np.zeros((64, 64), np.uint8)
    own[:, :32] = 255
    mask = torch.linspace(1, 0, 64).repeat(64, 1).contiguous()
    cutouts = []
    for hidden in ((0, 220, 0), (0, 0, 220)):
        rgb = np.zeros((64, 64, 3), np.uint8)
        rgb[:, :32], rgb[:, 32:] = (220, 120, 0), hidden
        cutouts.append(cut_out(Picture(rgb, own), mask))
    assert (cutouts[0][..., 3] > 0).any()
    assert np.array_equal(cutouts[0], cutouts[1])
