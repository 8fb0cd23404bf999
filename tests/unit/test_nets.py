"""The networks at toy size: every shape rule, the deformable convolution's borders, strict loading."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.nets import CONFIGS, BiRefNet, CheckpointError, SwinConfig, load_checkpoint, save_checkpoint
from worker.nets.decoder import DetailHead, image_to_patches, image_to_pixels
from worker.nets.deform_conv import DeformableConv2d, deform_conv2d
from worker.nets.fast import prepare_for_inference
from worker.nets.swin import LAYER_NORM_EPS, Swin, join_windows, shift_mask, split_windows


def toy(seed: int = 0) -> BiRefNet:
    torch.manual_seed(seed)
    return BiRefNet(CONFIGS["toy"]).eval()


def deform_by_hand(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """The defining sum, one sample at a time (Zhu et al. 2019, equation 1)."""
    batch, channels, height, width = x.shape
    out, _, k, _ = weight.shape
    y = torch.zeros(batch, out, height, width, dtype=torch.float64)

    def pixel(b: int, row: int, column: int) -> Tensor:
        inside = 0 <= row < height and 0 <= column < width
        return x[b, :, row, column].double() if inside else torch.zeros(channels, dtype=torch.float64)

    for b in range(batch):
        for i in range(height):
            for j in range(width):
                for tap in range(k * k):
                    py = i + tap // k - k // 2 + float(offset[b, 2 * tap, i, j])
                    px = j + tap % k - k // 2 + float(offset[b, 2 * tap + 1, i, j])
                    r, c = int(torch.tensor(py).floor()), int(torch.tensor(px).floor())
                    fy, fx = py - r, px - c
                    value = (
                        (1 - fy) * (1 - fx) * pixel(b, r, c)
                        + (1 - fy) * fx * pixel(b, r, c + 1)
                        + fy * (1 - fx) * pixel(b, r + 1, c)
                        + fy * fx * pixel(b, r + 1, c + 1)
                    )
                    y[b, :, i, j] += float(mask[b, tap, i, j]) * (weight[:, :, tap // k, tap % k].double() @ value)
    return y.float()


class TestDeformableConvolution:
    @pytest.mark.parametrize("kernel", [1, 3, 7])
    def test_it_is_the_defining_sum_also_across_the_borders(self, kernel: int) -> None:
        torch.manual_seed(kernel)
        x = torch.randn(2, 3, 5, 4)
        offset = 3 * torch.randn(2, 2 * kernel**2, 5, 4)  # far outside at times
        mask = torch.rand(2, kernel**2, 5, 4)
        weight = torch.randn(4, 3, kernel, kernel)
        torch.testing.assert_close(
            deform_conv2d(x, offset, mask, weight), deform_by_hand(x, offset, mask, weight), atol=1e-4, rtol=1e-4
        )

    def test_without_offsets_it_is_a_plain_convolution(self) -> None:
        x, weight = torch.randn(1, 3, 6, 7), torch.randn(2, 3, 3, 3)
        y = deform_conv2d(x, torch.zeros(1, 18, 6, 7), torch.ones(1, 9, 6, 7), weight)
        torch.testing.assert_close(y, F.conv2d(x, weight, padding=1), atol=1e-5, rtol=1e-5)

    def test_a_picture_of_one_pixel_works(self) -> None:
        y = deform_conv2d(
            torch.ones(1, 1, 1, 1), torch.full((1, 2, 1, 1), 0.5), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        )
        assert y.item() == pytest.approx(0.25)  # half a pixel out in both directions

    def test_wild_offsets_sample_nothing_instead_of_failing(self) -> None:
        offset = torch.full((1, 2, 4, 4), 1e30)
        offset[0, :, 0, 0] = float("inf")
        y = deform_conv2d(torch.ones(1, 1, 4, 4), offset, torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1))
        assert not torch.nan_to_num(y).any()

    def test_gradients_reach_input_offsets_and_weights(self) -> None:
        x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
        layer = DeformableConv2d(2, 2, 3)
        torch.nn.init.normal_(layer.offset_conv.weight, std=0.1)
        layer(x.float()).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


class TestWindows:
    @given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
    @settings(deadline=None, max_examples=30)
    def test_joining_undoes_splitting(self, batch: int, rows: int, columns: int, size: int) -> None:
        x = torch.randn(batch, rows * size, columns * size, 3)
        windows = split_windows(x, size)
        assert windows.shape == (batch * rows * columns, size * size, 3)
        assert torch.equal(join_windows(windows, size, rows * size, columns * size), x)

    def test_a_map_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="7x8 map"):
            split_windows(torch.zeros(1, 7, 8, 1), 4)

    def test_the_shift_mask_joins_only_neighbours(self) -> None:
        """Tokens see each other exactly when the shift did not bring them together across a border."""
        size, shift, length = 4, 2, 8
        allowed = shift_mask(length, length, size, shift, torch.device("cpu"))
        coordinates = torch.stack(torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij"), -1)
        shifted = split_windows(coordinates.roll((-shift, -shift), (0, 1)).unsqueeze(0).float(), size)
        for window in range(allowed.shape[0]):
            for a in range(size * size):
                for b in range(size * size):
                    near = bool(((shifted[window, a] - shifted[window, b]).abs() < size).all())
                    assert bool(allowed[window, a, b]) == near


class TestTheNetwork:
    @pytest.mark.parametrize("size", [(64, 64), (64, 96), (32, 160)])
    def test_logits_have_the_size_of_the_input(self, size: tuple[int, int]) -> None:
        with torch.no_grad():
            assert toy()(torch.randn(2, 3, *size)).shape == (2, 1, *size)

    def test_a_size_that_does_not_divide_is_refused_with_the_reason(self) -> None:
        with pytest.raises(ValueError, match="multiples of 32"):
            toy()(torch.zeros(1, 3, 60, 64))

    def test_an_item_does_not_depend_on_its_neighbours(self) -> None:
        model, batch = toy(), torch.randn(3, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(batch)[1:2], model(batch[1:2]), atol=1e-5, rtol=1e-4)

    def test_attention_may_lay_its_answer_out_as_it_likes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a card it comes token by token, (B, N, heads, d) in memory."""
        model, x = toy(), torch.randn(2, 3, 96, 96)  # shifted blocks with several windows
        attention: Callable[..., Tensor] = F.scaled_dot_product_attention

        def token_by_token(*operands: Tensor, **options: Tensor) -> Tensor:
            return attention(*operands, **options).transpose(1, 2).contiguous().transpose(1, 2)

        with torch.no_grad():
            expected = model(x), prepare_for_inference(model)(x)
            monkeypatch.setattr(F, "scaled_dot_product_attention", token_by_token)
            assert torch.equal(model(x), expected[0])
            assert torch.equal(prepare_for_inference(model)(x), expected[1])

    def test_training_outputs_end_with_the_answer(self) -> None:
        model, x = toy(), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            aux = model.forward_with_aux(x)
            assert [tuple(mask.shape[2:]) for mask in aux.masks] == [(2, 2), (4, 4), (8, 8), (64, 64)]
            assert len(aux.gradients) == 3
            assert torch.equal(aux.masks[-1], model(x))

    def test_the_backbone_takes_any_size(self) -> None:
        with torch.no_grad():
            maps = Swin(cast(SwinConfig, CONFIGS["toy"].backbone))(torch.randn(1, 3, 37, 50))
        assert [tuple(m.shape[1:]) for m in maps] == [(16, 10, 13), (32, 5, 7), (64, 3, 4), (128, 2, 2)]

    def test_patches_keep_tiles_whole(self) -> None:
        """Channels are (c, tile row, tile column); a pixel-unshuffle would interleave instead."""
        image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6).float()
        patches = image_to_patches(image, (2, 3))
        assert torch.equal(patches[0, 0], image[0, 0, :2, :3])
        assert torch.equal(patches[0, 1], image[0, 0, :2, 3:])
        assert torch.equal(patches[0, 2], image[0, 0, 2:, :3])
        assert torch.equal(patches[0, 4], image[0, 1, :2, :3])

    @pytest.mark.parametrize("side", [1, 2, 4])
    def test_pixels_of_a_position_stand_behind_one_another(self, side: int) -> None:
        image = torch.randn(2, 3, 8, 16)
        pixels = image_to_pixels(image, (8 // side, 16 // side))
        assert torch.equal(pixels, F.pixel_unshuffle(image, side))
        assert pixels.is_contiguous(memory_format=torch.channels_last)

    def test_of_more_pixels_than_the_limit_averages_are_taken(self) -> None:
        image = torch.randn(2, 3, 16, 32)
        torch.testing.assert_close(image_to_pixels(image, (2, 4)), F.pixel_unshuffle(F.avg_pool2d(image, 2), 4))

    def test_the_detail_head_sees_its_maps_side_by_side(self) -> None:
        head = DetailHead((3, 5, 2), 8).eval()
        maps = [torch.randn(2, channels, 6, 7) for channels in head.inputs]
        x = F.relu(head.bn_in(head.conv_in(torch.cat(maps, dim=1))))
        expected = F.pixel_shuffle(head.conv_out(F.relu(head.bn_mid(head.conv_mid(x)))), 2)
        torch.testing.assert_close(head(*maps), expected)

    def test_layer_norms_have_the_epsilon_the_golden_vectors_cannot_see(self) -> None:
        norms = [m for m in toy().modules() if isinstance(m, torch.nn.LayerNorm)]
        assert LAYER_NORM_EPS == 1e-5
        assert norms
        assert {norm.eps for norm in norms} == {1e-5}


class TestCheckpoints:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_a_file_of_either_precision_loads(self, tmp_path: Path, dtype: torch.dtype) -> None:
        path = tmp_path / "model.safetensors"
        save_checkpoint(toy(), path, dtype=dtype)
        model = load_checkpoint(path, CONFIGS["toy"])
        x = torch.randn(1, 3, 64, 64)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        with torch.no_grad():
            torch.testing.assert_close(model(x), toy()(x), atol=0.02 if dtype == torch.float16 else 0, rtol=0.02)

    def test_files_with_all_buffers_load_too(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file({key: value.contiguous() for key, value in toy().state_dict().items()}, path)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(load_checkpoint(path, CONFIGS["toy"])(x), toy()(x))

    def test_every_key_that_differs_is_listed(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_checkpoint(toy(), path)
        tensors = load_file(path)
        del tensors["bb.norm0.weight"], tensors["decoder.conv_out1.0.bias"]
        tensors["bb.norm1.bias"] = torch.zeros(5)
        tensors["somebody.else"] = torch.zeros(1)
        save_file(tensors, path)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path, CONFIGS["toy"])
        message = str(caught.value)
        assert "missing: bb.norm0.weight" in message
        assert "missing: decoder.conv_out1.0.bias" in message
        assert "extra: somebody.else" in message
        assert "shape: bb.norm1.bias is (5,)" in message
        assert "(4 keys)" in message

    @pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x08\0\0\0\0\0\0\0{}      "])
    def test_another_kind_of_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            load_checkpoint(path, CONFIGS["toy"])

    def test_a_truncated_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_checkpoint(toy(), path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(path, CONFIGS["toy"])
