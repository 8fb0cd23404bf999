"""Our own CUDA kernels on a CPU, by Triton's interpreter: the same numbers as torch's operators."""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from tests.golden import fill_recipe
from worker.images import foreground
from worker.nets import CONFIGS, BiRefNet
from worker.nets.decoder import DeformableASPP
from worker.nets.deform_conv import deform_conv2d
from worker.nets.fast import deform, layers, own, prepare_for_inference
from worker.nets.fast.deform import FastASPP
from worker.nets.fast.layers import Conv
from worker.nets.fast.swin import _Block, _Plan
from worker.nets.swin import SwinBlock

_NAME = "worker.nets.fast.kernels"


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The kernels as the interpreter runs them: it is chosen when a kernel is defined, Triton's own ones included."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the CPU build of torch comes without Triton: pip install triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in list(sys.modules):  # a compiler may have imported it
            if name == "triton" or (name.startswith("triton.") and not name.startswith("triton._C")):
                patch.delitem(sys.modules, name)
        patch.delitem(sys.modules, _NAME, raising=False)
        yield importlib.import_module(_NAME)
        for name in [_NAME, *(name for name in sys.modules if name == "triton" or name.startswith("triton."))]:
            del sys.modules[name]


@pytest.fixture
def chosen(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """As on a card: the networks take the kernels."""
    monkeypatch.setattr(own, "own_kernels", lambda device: kernels)
    return kernels


class TestDeformableColumns:
    @pytest.mark.parametrize(
        ("size", "channels", "kernel", "together"),
        [((5, 7), 8, 3, 1), ((1, 1), 8, 7, 1), ((4, 6), 6, 1, 2), ((1, 9), 64, 7, 1), ((6, 5), 48, 3, 2)],
    )
    def test_columns_times_weights_are_the_convolution(
        self, kernels: ModuleType, size: tuple[int, int], channels: int, kernel: int, together: int
    ) -> None:
        torch.manual_seed(0)
        taps, positions = kernel**2, 2 * size[0] * size[1]
        x, sampling = torch.randn(2, *size, channels), 3 * torch.randn(positions, 3 * together * taps)
        middle = positions // 3
        parts = [(0, middle), (middle, positions)] if middle else [(0, positions)]
        columns = torch.cat([kernels.deformable_columns(x, sampling, *part, kernel) for part in parts])
        weight = torch.randn(4, channels, kernel, kernel)
        for number in range(together):
            part = slice(number * taps, (number + 1) * taps)
            dy, dx, modulation = sampling.view(2, *size, 3, -1)[..., part].permute(3, 0, 4, 1, 2)
            expected = deform_conv2d(
                x.permute(0, 3, 1, 2), torch.stack((dy, dx), 2).flatten(1, 2), modulation.sigmoid(), weight
            )
            found = columns[:, part].flatten(1) @ weight.permute(0, 2, 3, 1).flatten(1).t()
            torch.testing.assert_close(found.view(2, *size, 4).permute(0, 3, 1, 2), expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
    def test_wild_offsets_stay_in_their_sample(self, kernels: ModuleType, value: float) -> None:
        x, sampling = torch.ones(1, 3, 3, 8), torch.zeros(9, 3)
        sampling[4, 0] = value
        columns = kernels.deformable_columns(x, sampling, 0, 9, 1)[:, 0]
        assert (columns[[0, 1, 2, 3, 5, 6, 7, 8]] == 0.5).all()
        assert columns[4].isnan().all() if value != value else (columns[4] == 0).all()

    def test_half_precision_rounds_the_columns_alone(self, kernels: ModuleType) -> None:
        torch.manual_seed(0)
        x, sampling = torch.randn(1, 5, 6, 8).half(), torch.randn(30, 27).half()
        exact = kernels.deformable_columns(x.float(), sampling.float(), 0, 30, 3)
        columns = kernels.deformable_columns(x, sampling, 0, 30, 3)
        assert columns.dtype == torch.float16
        torch.testing.assert_close(columns, exact.half(), atol=0, rtol=1e-3)


class TestWindowAttention:
    @pytest.mark.parametrize(
        ("batch", "size", "window", "heads"),
        [(1, (24, 12), 12, 2), (2, (13, 9), 7, 1), (1, (4, 5), 4, 2), (2, (5, 12), 12, 1), (1, (2, 2), 3, 2)],
    )
    @pytest.mark.parametrize("shifted", [False, True])
    @pytest.mark.parametrize("form", range(4))
    @torch.inference_mode()
    def test_a_block_is_the_plain_block(
        self,
        kernels: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        batch: int,
        size: tuple[int, int],
        window: int,
        heads: int,
        shifted: bool,
        form: int,
    ) -> None:
        torch.manual_seed(3)
        assert kernels.ATTENTION_FORMS == 4
        monkeypatch.setattr(kernels, "window_attention", partial(kernels.window_attention, form=form))
        dim = 8 * heads
        block = SwinBlock(dim, heads, window, window // 2 if shifted else 0, 2.0).eval()
        nn.init.normal_(block.attn.relative_position_bias_table)
        nn.init.normal_(block.attn.qkv.bias)
        x = torch.randn(batch, *size, dim)
        plan = _Plan(batch, *size, window, block.shift, x.device)
        shift = torch.randn(dim)
        fast, found = _Block(block, shift), (x - shift).view(-1, dim)
        fast.add_to(found, plan, kernels)
        torch.testing.assert_close(found.view_as(x) + fast.shift_out, block(x), atol=2e-5, rtol=1e-4)

    @pytest.mark.parametrize("form", range(4))
    def test_large_scores_do_not_overflow_and_a_nan_stays_in_its_window(self, kernels: ModuleType, form: int) -> None:
        torch.manual_seed(0)
        qkv, masks = 30 * torch.randn(8, 48), torch.zeros(1, 1, 4, 4)
        tokens, kinds = torch.arange(8).view(2, 4).int(), torch.zeros(2).int()
        found = kernels.window_attention(qkv, qkv[0], masks, tokens, kinds, 1, form)
        q, k, v = qkv.view(2, 4, 3, 16).unbind(2)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).flatten(0, 1)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
        qkv[5, 20] = float("nan")
        spoilt = kernels.window_attention(qkv, qkv[0], masks, tokens, kinds, 1, form)
        assert torch.equal(spoilt[:4], found[:4])
        assert spoilt[4:].isnan().all()


class TestLayerNorm:
    @pytest.mark.parametrize("shape", [(5, 8), (300, 24), (1, 3000)])
    def test_it_is_torch_s_of_the_shifted_rows(self, kernels: ModuleType, shape: tuple[int, int]) -> None:
        torch.manual_seed(0)
        x, shift, weight, bias = torch.randn(shape), *torch.randn(3, shape[1]).unbind()
        found = kernels.layer_norm(x, shift, weight, bias, 1e-5)
        expected = torch.nn.functional.layer_norm(x + shift, shape[1:], weight, bias, 1e-5)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("shape", [(1, 2, 2, 3), (2, 6, 4, 5), (1, 4, 10, 32)])
    def test_norm_of_four_neighbours_side_by_side(self, kernels: ModuleType, shape: tuple[int, ...]) -> None:
        torch.manual_seed(8)
        x, dim = torch.randn(shape), 4 * shape[3]
        shift, weight, bias = torch.randn(dim), torch.randn(dim), torch.randn(dim)
        found = kernels.layer_norm_of_cells(x, shift, weight, bias, 1e-5)
        cells = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        expected = torch.nn.functional.layer_norm(cells + shift, (dim,), weight, bias, 1e-5)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class TestEdgeColours:
    @pytest.mark.parametrize("size", [(40, 70), (33, 9), (1, 9), (5, 3)])
    def test_colours_are_those_of_torch_s_operators(
        self, kernels: ModuleType, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        image, alpha, seen = torch.rand(3, *size), torch.rand(size), (torch.rand(size) > 0.3).float()
        expected = foreground.estimate(image, alpha, seen)
        monkeypatch.setattr(own, "kernels_for", lambda x: kernels)
        found = foreground.estimate(image, alpha, seen)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        assert (found.std(dim=(1, 2)) > 0.01).all()  # two equal planes would say nothing


class TestResize:
    @pytest.mark.parametrize(
        ("before", "channels", "after"),
        [((5, 7), 6, (9, 13)), ((8, 8), 1, (40, 33)), ((16, 9), 300, (3, 5)), ((1, 1), 8, (4, 4)), ((4, 4), 8, (1, 1))],
    )
    def test_it_is_torch_s_with_corners_aligned(
        self, kernels: ModuleType, before: tuple[int, int], channels: int, after: tuple[int, int]
    ) -> None:
        torch.manual_seed(0)
        wide, bias = torch.randn(2, *before, channels + 3), torch.randn(channels)
        x = wide[..., :channels]
        expected = torch.nn.functional.interpolate(
            x.permute(0, 3, 1, 2), size=after, mode="bilinear", align_corners=True
        ).permute(0, 2, 3, 1)
        torch.testing.assert_close(kernels.resize(x, after), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kernels.resize(x.contiguous(), after, bias), expected + bias, atol=1e-5, rtol=1e-5)
        lines = x[:, ::2]  # apart
        torch.testing.assert_close(kernels.resize(lines, after), kernels.resize(lines.contiguous(), after))


class TestElementwise:
    @pytest.mark.parametrize(("rows", "channels"), [(6, 5), (90, 64), (4, 3000)])
    def test_sums_and_gates_are_torch_s(self, kernels: ModuleType, rows: int, channels: int) -> None:
        torch.manual_seed(0)
        y, more, one, each = (torch.randn(n, channels) for n in (rows, rows, 1, 2))
        found = y.clone()
        kernels.add_bias(found, one[0], relu=False)
        torch.testing.assert_close(found, y + one)
        found = y.clone()
        kernels.add_bias(found, each, more, relu=True)
        torch.testing.assert_close(found, (y + each.repeat_interleave(rows // 2, 0) + more).relu())
        gate = torch.randn(rows, 8)[:, 2:3]
        torch.testing.assert_close(kernels.gated(y, gate), y * gate.sigmoid())

    def test_a_relu_keeps_a_nan(self, kernels: ModuleType) -> None:
        y = torch.full((2, 4), float("nan"))
        kernels.add_bias(y, torch.zeros(4), relu=True)
        assert y.isnan().all()


class TestTheNetworkWithThem:
    @pytest.mark.parametrize("limit", [1, 8 * 49 * 300, 2**22])
    @torch.inference_mode()
    def test_the_aspp_is_the_plain_one(self, chosen: ModuleType, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        torch.manual_seed(1)
        plain = DeformableASPP(8, 6, (1, 3, 7)).eval()
        for name, parameter in plain.named_parameters():
            nn.init.normal_(parameter, std=3.0 if "offset_conv.bias" in name else 0.2)
        monkeypatch.setattr(deform, "_COLUMN_LIMIT", limit)
        x = torch.randn(3, 8, 16, 9)
        found = FastASPP(plain)(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, plain(x), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("variant", ["toy", "starter"])
    @torch.inference_mode()
    def test_whole_groups_of_channels_change_nothing(
        self, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, variant: str
    ) -> None:
        model: BiRefNet = fill_recipe.fill(BiRefNet(CONFIGS[variant]).eval())
        x = fill_recipe.image_tensor(64, 96)
        expected = model(x)
        monkeypatch.setattr(layers, "takes_whole_groups", lambda like: True)
        net = prepare_for_inference(model, pack=False)
        convs = [module for module in net.modules() if isinstance(module, Conv)]
        assert any(len(conv.weight) > conv.out for conv in convs)
        assert all(len(conv.weight) % 8 == 0 for conv in convs)
        torch.testing.assert_close(net(x), expected, atol=3e-4, rtol=0)
        monkeypatch.setattr(own, "own_kernels", lambda device: kernels)
        torch.testing.assert_close(net(x), expected, atol=3e-4, rtol=0)

    @pytest.mark.parametrize("size", [(32, 64), (96, 32)])  # at 32 the deepest maps of the half-size pass are odd
    @torch.inference_mode()
    def test_logits_are_the_plain_network_s(self, chosen: ModuleType, size: tuple[int, int]) -> None:
        model: BiRefNet = fill_recipe.fill(BiRefNet(CONFIGS["toy"]).eval())
        height, width = size
        x = torch.cat([fill_recipe.image_tensor(height, width), torch.randn(1, 3, height, width)])
        expected = model(x)
        torch.testing.assert_close(prepare_for_inference(model, pack=False)(x), expected, atol=3e-4, rtol=0)
        half = prepare_for_inference(model.half())(x.half())
        assert (half.float().sigmoid() - expected.sigmoid()).abs().max() < 0.015


class TestFastest:
    ANSWER = torch.tensor([1.0, float("nan")])

    def candidate(self, calls: list[str], name: str, error: float | Exception) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            calls.append(name)
            if isinstance(error, Exception):
                raise error
            return self.ANSWER + error

        return run

    def test_the_fastest_that_is_right_is_found_once_and_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []
        names = ("slow", "wrong", "broken", "fast", "medium")
        errors: tuple[float | Exception, ...] = (0.0, 0.5, RuntimeError("out of shared memory\nmore"), 0.001, 0.0)
        candidates = [self.candidate(calls, name, error) for name, error in zip(names, errors, strict=True)]
        times = dict(zip(candidates, (5.0, 1.0, 1.0, 2.0, 3.0), strict=True))
        monkeypatch.setattr(own, "_fastest", {})
        monkeypatch.setattr(own, "_milliseconds", times.__getitem__)
        monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
        own.fastest("key", candidates)
        assert calls == ["slow"]  # a recording must not see trials, and decides nothing
        monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
        with capture_logs() as logs:
            own.fastest("key", candidates)
        assert [entry["candidate"] for entry in logs] == [1, 2]
        assert logs[1]["detail"] == "RuntimeError: out of shared memory"
        calls.clear()
        torch.testing.assert_close(own.fastest("key", candidates), self.ANSWER + 0.001, equal_nan=True)
        assert calls == ["fast"]

    def test_out_of_memory_reaches_the_caller_and_decides_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(own, "_fastest", {})
        monkeypatch.setattr(own, "_milliseconds", lambda run: 1.0)
        monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
        candidates = [self.candidate([], "right", 0.0), self.candidate([], "large", torch.OutOfMemoryError("no room"))]
        with pytest.raises(torch.OutOfMemoryError):
            own.fastest("key", candidates)
        assert not own._fastest


class TestChoosing:
    def test_a_cpu_has_none(self) -> None:
        assert own.own_kernels(torch.device("cpu")) is None

    def test_they_are_tried_beside_what_else_starts_under_the_name_that_passes_use(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[tuple[torch.device, bool]] = []

        def own_kernels(device: torch.device) -> None:
            tried.append((device, threading.current_thread() is threading.main_thread()))

        monkeypatch.setattr(own, "own_kernels", own_kernels)
        monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
        with ThreadPoolExecutor(1) as threads:
            for name in ("cuda", "cuda:1", "cpu"):
                assert own.try_beside(torch.device(name), threads).result() is None
        assert tried == [(torch.device(name), False) for name in ("cuda:0", "cuda:1", "cpu")]

    def test_where_they_do_not_run_torch_s_operators_do_with_one_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own.own_kernels.cache_clear()
        monkeypatch.setitem(sys.modules, _NAME, None)  # as where Triton is missing
        with capture_logs() as logs:
            for _ in range(2):
                assert own.own_kernels(torch.device("cuda")) is None
        assert [entry["event"] for entry in logs] == ["own_kernels_unavailable"]
        own.own_kernels.cache_clear()

    def test_a_kernel_that_is_wrong_here_is_found_before_it_is_used(
        self, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own._try(kernels, torch.device("cpu"))

        def wrong(ours: Callable[..., torch.Tensor | None], *given: torch.Tensor, **options: bool) -> torch.Tensor:
            answer = ours(*given, **options)
            return given[0].add_(1) if answer is None else answer + 1

        names = "deformable_columns window_attention layer_norm layer_norm_of_cells resize add_bias gated relax"
        for name in names.split():
            with monkeypatch.context() as patch:
                patch.setattr(kernels, name, partial(wrong, getattr(kernels, name)))
                with pytest.raises(RuntimeError, match="wrong numbers"):
                    own._try(kernels, torch.device("cpu"))

    @torch.inference_mode()
    def test_a_compiler_sees_torch_s_operators(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net = prepare_for_inference(BiRefNet(CONFIGS["toy"]).eval())
        x = torch.randn(1, 3, 32, 32)
        expected = net(x)

        def own_kernels(device: torch.device) -> ModuleType:
            raise AssertionError("a kernel was asked for")

        monkeypatch.setattr(own, "own_kernels", own_kernels)
        with pytest.raises(AssertionError):
            net(x)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.testing.assert_close(net(x), expected)
