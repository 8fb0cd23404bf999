"""The picture generator and the losses that the starter weights come from; drawn art, so no fetched file is needed."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from training import losses
from training.data import drawn_assets, normalised, sample
from training.losses import RECIPES, box_mean, gradient_target, iou_loss, sharpened, ssim_loss, training_loss
from training.measures import score
from training.train import Average, Phase, learning_rate


@dataclass
class Outputs:
    """What a network gives, made by hand."""

    masks: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


def test_a_sample_depends_on_its_seed_and_number_only() -> None:
    assets = drawn_assets()
    first, again = sample(assets, 3, 5, 96), sample(drawn_assets(), 3, 5, 96)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.alpha, again.alpha)
    assert not np.array_equal(first.image, sample(assets, 4, 5, first.image.shape[0]).image)


def test_samples_have_a_design_and_a_background() -> None:
    assets = drawn_assets()
    for index in range(30):
        pair = sample(assets, 1, index, 96)
        assert pair.image.dtype == pair.alpha.dtype == np.uint8
        assert pair.image.shape == (*pair.alpha.shape, 3)
        assert 0.005 < (pair.alpha > 127).mean() < 0.99


def test_pictures_are_squashed_and_normalised_as_the_network_expects() -> None:
    grey = np.full((40, 60, 3), 124, np.uint8)
    tensor = normalised(grey, 32)
    assert tensor.shape == (3, 32, 32)
    np.testing.assert_allclose(tensor[0], (124 / 255 - 0.485) / 0.229, atol=1e-5)


def test_losses_vanish_at_a_perfect_mask_and_fall_towards_it() -> None:
    target = torch.zeros(2, 1, 32, 32)
    target[:, :, 8:24, 10:20] = 1
    for loss in (iou_loss, ssim_loss):
        values = [float(loss(target * keep + (1 - target) * (1 - keep), target)) for keep in (0.5, 0.8, 1.0)]
        assert values[0] > values[1] > values[2]
        assert values[2] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("window", "stride", "padding"), [(15, 1, 7), (7, 2, 0), (3, 2, 1)])
def test_box_means_count_what_of_each_window_lies_in_the_picture(window: int, stride: int, padding: int) -> None:
    x = torch.rand(2, 3, 32, 41, generator=torch.Generator().manual_seed(4))
    at_once = torch.nn.functional.avg_pool2d(x, window, stride, padding, count_include_pad=False)
    torch.testing.assert_close(box_mean(x, window, stride, padding), at_once)


@pytest.mark.parametrize("role", sorted(RECIPES))
def test_the_whole_loss_falls_as_the_logits_approach_the_mask(role: str) -> None:
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alpha = torch.zeros(1, 1, 32, 32)
    alpha[:, :, 8:24, 8:24] = 1
    coarse = torch.nn.functional.adaptive_avg_pool2d(alpha, (8, 8))

    def loss(strength: float) -> float:
        outputs = Outputs([strength * (2 * coarse - 1), strength * (2 * alpha - 1)], [torch.zeros(1, 1, 8, 8)])
        return float(training_loss(outputs, image, alpha, RECIPES[role])[0])

    assert loss(-2) > loss(0) > loss(2) > loss(8)


def test_gradient_targets_are_inside_the_design_only() -> None:
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    alpha = torch.zeros(1, 1, 32, 32)
    alpha[:, :, :, :16] = 1
    edges = gradient_target(image, alpha, (8, 8))
    assert edges.shape == (1, 1, 8, 8)
    assert float(edges.min()) >= 0
    assert float(edges.max()) <= 1
    assert float(edges[..., 5:].max()) == 0
    assert float(edges[..., :3].min()) > 0


def test_sharpening_decides_soft_alpha_and_keeps_the_rest() -> None:
    alpha = torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0])
    assert sharpened(alpha, 1) is alpha
    torch.testing.assert_close(sharpened(alpha, 5), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    assert losses.RECIPES["rmbg"].sharpness > losses.RECIPES["birefnet"].sharpness


def test_the_learning_rate_warms_up_and_then_falls() -> None:
    assert learning_rate(0, 0.0, 1.0) < 0.05
    rates = [learning_rate(1000, progress, 1.0) for progress in (0.1, 0.5, 0.9, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.02)


def test_averaged_weights_follow_the_network() -> None:
    layer = torch.nn.Linear(2, 2)
    average = Average(layer)
    with torch.no_grad():
        layer.weight += 1
    for _ in range(50):
        average.update(layer)
    torch.testing.assert_close(average.state["weight"], layer.weight.detach(), atol=0.02, rtol=0)
    assert Phase(1.0, 64, 2).size == 64


def test_scores_of_a_right_and_a_wrong_mask() -> None:
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, :4] = 255
    right = (alpha / 255).astype(np.float32)
    assert score(right, alpha)[:2] == (0.0, 1.0)
    assert score(1 - right, alpha)[:2] == (1.0, 0.0)
