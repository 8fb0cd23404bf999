"""Our own CUDA kernels on a CPU, by Triton's interpreter: the same numbers as torch's operators."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn

from tests.golden import fill_recipe
from worker.nets import CONFIGS, BiRefNet
from worker.nets.decoder import DeformableASPP
from worker.nets.deform_conv import deform_conv2d
from worker.nets.fast import deform, own, prepare_for_inference
from worker.nets.fast.deform import FastASPP

_NAME = "worker.nets.fast.kernels"


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The kernels as the interpreter runs them: it is chosen when a kernel is defined."""
    pytest.importorskip("triton", reason="the CPU build of torch comes without Triton: pip install triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.delitem(sys.modules, _NAME, raising=False)
        yield importlib.import_module(_NAME)
        del sys.modules[_NAME]


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

    @torch.inference_mode()
    def test_logits_are_the_plain_network_s(self, chosen: ModuleType) -> None:
        model: BiRefNet = fill_recipe.fill(BiRefNet(CONFIGS["toy"]).eval())
        x = torch.cat([fill_recipe.image_tensor(32, 64), torch.randn(1, 3, 32, 64)])
        torch.testing.assert_close(prepare_for_inference(model)(x), model(x), atol=3e-4, rtol=0)


class TestChoosing:
    def test_a_cpu_has_none(self) -> None:
        assert own.own_kernels(torch.device("cpu")) is None

    def test_where_they_do_not_run_torch_s_operators_do_with_one_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own.own_kernels.cache_clear()
        monkeypatch.setitem(sys.modules, _NAME, None)  # as where Triton is missing
        with capture_logs() as logs:
            for _ in range(2):
                assert own.own_kernels(torch.device("cuda")) is None
        assert [entry["event"] for entry in logs] == ["own_kernels_unavailable"]
        own.own_kernels.cache_clear()

    def test_a_kernel_that_is_wrong_here_is_found_before_it_is_used(self, kernels: ModuleType) -> None:
        own._try(kernels, torch.device("cpu"))

        class Wrong(ModuleType):
            @staticmethod
            def deformable_columns(x: Tensor, *_: object) -> Tensor:
                return torch.zeros_like(x)

        with pytest.raises(RuntimeError, match="wrong numbers"):
            own._try(Wrong("kernels"), torch.device("cpu"))

    def test_a_compiler_sees_torch_s_operators(self, monkeypatch: pytest.MonkeyPatch) -> None:
        aspp = FastASPP(DeformableASPP(4, 4, (1,)).eval())
        x = torch.randn(1, 3, 3, 4)
        expected = aspp(x)

        def own_kernels(device: torch.device) -> ModuleType:
            raise AssertionError("a kernel was asked for")

        monkeypatch.setattr(own, "own_kernels", own_kernels)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.testing.assert_close(aspp(x), expected)
