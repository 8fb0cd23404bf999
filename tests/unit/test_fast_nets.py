"""The inference form against the plain networks: the same numbers, whatever the variant, size, batch or border."""

import copy
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from torch import Tensor, nn

from tests.golden import fill_recipe
from worker.nets import CONFIGS, BiRefNet
from worker.nets.decoder import DeformableASPP, PatchBlock
from worker.nets.fast import FastBiRefNet, graphs, layers, own, prepare_for_inference
from worker.nets.fast import deform as deform_module
from worker.nets.fast.compiled import Compiled, accelerate, artefact_key, artefact_path, code_hash
from worker.nets.fast.decoder import _Pictures
from worker.nets.fast.deform import FastASPP
from worker.nets.fast.graphs import Graphed, Recording
from worker.nets.fast.layers import Conv, Linear, product_of_columns
from worker.nets.fast.network import _enlarged_then_resized
from worker.nets.fast.swin import _Block, _Plan
from worker.nets.swin import SwinBlock

#: Logits, largest difference; they reach 10 here. Two orders of summation differ by up to 1.3e-4 at these sizes.
CLOSE = 3e-4


def plain(variant: str) -> BiRefNet:
    model: BiRefNet = fill_recipe.fill(BiRefNet(CONFIGS[variant]).eval())
    return model


def picture(height: int, width: int, batch: int = 1) -> Tensor:
    torch.manual_seed(0)
    return torch.cat([fill_recipe.image_tensor(height, width), torch.randn(batch - 1, 3, height, width)])


@pytest.fixture(scope="module")
def toys() -> tuple[BiRefNet, FastBiRefNet]:
    model = plain("toy")
    return model, prepare_for_inference(model)


class TestTheSameFunction:
    @pytest.mark.parametrize("size", [(32, 32), (64, 64), (64, 96), (32, 160), (224, 96)])
    @pytest.mark.parametrize("batch", [1, 3])
    @torch.inference_mode()
    def test_of_any_size_and_batch(
        self, toys: tuple[BiRefNet, FastBiRefNet], size: tuple[int, int], batch: int
    ) -> None:
        model, fast = toys
        x = picture(*size, batch)
        torch.testing.assert_close(fast(x), model(x), atol=CLOSE, rtol=0)

    @pytest.mark.parametrize("variant", ["starter", "swin_v1_tiny"])
    @torch.inference_mode()
    def test_of_every_variant(self, variant: str) -> None:
        """The large one is in tests/golden, at its golden size."""
        model = plain(variant)
        x = picture(64, 96, 2)
        torch.testing.assert_close(prepare_for_inference(model)(x), model(x), atol=CLOSE, rtol=0)

    @pytest.mark.parametrize("variant", ["toy", "starter"])
    @torch.inference_mode()
    def test_an_item_does_not_depend_on_its_neighbours(self, variant: str) -> None:
        fast = prepare_for_inference(plain(variant))
        batch, other = picture(64, 64, 3), picture(64, 64, 3)
        other[0], other[2] = 100.0, float("nan")
        assert torch.equal(fast(batch)[1], fast(other)[1])  # bitwise, whatever stands beside it
        # Alone it is another size of matrix product, which may sum in another order.
        torch.testing.assert_close(fast(batch)[1:2], fast(batch[1:2]), atol=CLOSE, rtol=0)

    @torch.inference_mode()
    def test_in_half_precision_too(self) -> None:
        model = plain("toy")
        exact, x = model(picture(64, 64)).sigmoid(), picture(64, 64)
        half = prepare_for_inference(model.half())(x.half())
        assert half.dtype == torch.float16
        assert (half.float().sigmoid() - exact).abs().max() < 0.015

    def test_a_size_that_does_not_divide_is_refused_with_the_reason(self, toys: tuple[BiRefNet, FastBiRefNet]) -> None:
        with pytest.raises(ValueError, match="multiples of 32"):
            toys[1](torch.zeros(1, 3, 60, 64))

    def test_a_network_in_training_is_refused(self) -> None:
        with pytest.raises(ValueError, match="training mode"):
            prepare_for_inference(BiRefNet(CONFIGS["toy"]))

    def test_the_plain_network_can_be_trained_on_afterwards(self) -> None:
        model = plain("toy")
        before = copy.deepcopy(model.state_dict())
        prepare_for_inference(model)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())
        aux = model.train().forward_with_aux(picture(64, 64, 2))
        torch.stack([part.mean() for part in aux.masks + aux.gradients]).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # the exporter's own deprecations are not ours
    @pytest.mark.parametrize("variant", ["toy", "starter"])
    @torch.no_grad()
    def test_it_exports_as_one_graph(self, variant: str) -> None:
        """What a compiler needs: no step that depends on the values of tensors."""
        fast, x = prepare_for_inference(plain(variant), pack=False), picture(32, 32)
        expected = fast(x)  # a first pass makes what depends on the size
        torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), expected, atol=1e-5, rtol=0)


class TestTheDeformableASPP:
    def pair(self, channels: int = 8, *, spread: float = 3.0) -> tuple[DeformableASPP, FastASPP]:
        torch.manual_seed(1)
        module = DeformableASPP(channels, 6, (1, 3, 7)).eval()
        for name, parameter in module.named_parameters():
            nn.init.normal_(parameter, std=spread if "offset_conv.bias" in name else 0.2)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
                nn.init.uniform_(norm.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
        return module, FastASPP(module)

    @pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 5)])
    @torch.inference_mode()
    def test_samples_far_outside_count_as_zero(self, size: tuple[int, int]) -> None:
        module, fast = self.pair(spread=4.0)
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(fast(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), module(x), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("limit", [1, 8 * 49 * 5, 2**22])
    @torch.inference_mode()
    def test_computing_in_parts_changes_nothing(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        module, fast = self.pair()
        monkeypatch.setattr(deform_module, "_COLUMN_LIMIT", limit)
        x = torch.randn(2, 8, 6, 7)
        torch.testing.assert_close(fast(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), module(x), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
    @torch.inference_mode()
    def test_wild_values_spoil_their_own_picture_only(self, value: float) -> None:
        _, fast = self.pair()
        x = torch.randn(2, 6, 7, 8)
        alone = fast(x[1:])
        x[0, 2, 3] = value
        y = fast(x)
        assert not torch.equal(y[0], fast(torch.zeros_like(x))[0])
        torch.testing.assert_close(y[1:], alone, atol=1e-5, rtol=1e-5)


class TestTheTail:
    @pytest.mark.parametrize("size", [(3, 3), (3, 8), (9, 5)])
    @torch.inference_mode()
    def test_the_outermost_pixels_are_as_published(self, size: tuple[int, int]) -> None:
        torch.manual_seed(2)
        block = PatchBlock(3, 4, 6)
        out, bias = torch.randn(1, 6), torch.randn(1)
        x = torch.randn(2, 3, *size)
        expected = F.conv2d(block(x), out.view(1, 6, 1, 1), bias)
        torch.testing.assert_close(_Pictures(block, out, bias)(x), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("length", "between", "size"), [((4, 6), (8, 12), (2, 3)), ((1, 2), (2, 4), (1, 1)), ((3, 3), (6, 6), (6, 6))]
    )
    def test_two_resizes_are_one_product(
        self, length: tuple[int, int], between: tuple[int, int], size: tuple[int, int]
    ) -> None:
        x = torch.randn(2, *length, 5)

        def step(y: Tensor, to: tuple[int, int]) -> Tensor:
            return F.interpolate(y, size=to, mode="bilinear", align_corners=True)

        expected = step(step(x.permute(0, 3, 1, 2), between), size).permute(0, 2, 3, 1)
        torch.testing.assert_close(
            _enlarged_then_resized(x, between, size, nn.Module()), expected, atol=1e-6, rtol=1e-5
        )


class TestTheBackbone:
    @given(st.integers(1, 2), st.integers(1, 13), st.integers(1, 13), st.integers(2, 5), st.booleans())
    @settings(deadline=None, max_examples=25)
    def test_a_block_is_the_plain_block_on_maps_of_any_size(
        self, batch: int, height: int, width: int, window: int, shifted: bool
    ) -> None:
        torch.manual_seed(3)
        block = SwinBlock(8, 2, window, window // 2 if shifted else 0, 2.0).eval()
        nn.init.normal_(block.attn.relative_position_bias_table)
        nn.init.normal_(block.attn.qkv.bias)
        x = torch.randn(batch, height, width, 8)
        with torch.inference_mode():
            plan = _Plan(batch, height, width, window, block.shift, x.device)
            fast = _Block(block)(x.view(-1, 8), plan).view_as(x)
            torch.testing.assert_close(fast, block(x), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
    @pytest.mark.parametrize("bias", [True, False])
    @torch.inference_mode()
    def test_packed_weights_compute_the_same_layer(self, activation: str, bias: bool) -> None:
        layer = nn.Linear(12, 20, bias=bias)
        x, shortcut = torch.randn(2, 5, 12), torch.randn(2, 5, 20)
        own = Linear(layer.weight, layer.bias, activation, like=layer.weight)
        expected = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}[activation](layer(x))
        packed = copy.deepcopy(own)
        packed.pack()
        if bias and activation != "none":
            inside = own._activated_inside(x.flatten(0, 1)).view_as(expected)
            torch.testing.assert_close(inside, expected, atol=1e-5, rtol=1e-5)
        for candidate in (own, packed):
            torch.testing.assert_close(candidate(x), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(candidate(x, shortcut), expected + shortcut, atol=1e-5, rtol=1e-5)


class TestConvolutionsAsColumns:
    @given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5, 7]), st.booleans())
    @settings(deadline=None, max_examples=30)
    def test_columns_times_weights_are_the_convolution(
        self, batch: int, height: int, width: int, kernel: int, apart: bool
    ) -> None:
        torch.manual_seed(4)
        x = torch.randn(batch, height, width, 8, dtype=torch.float64)[..., : 5 if apart else 8]
        weight = torch.randn(6, x.shape[-1], kernel, kernel, dtype=torch.float64)
        expected = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=kernel // 2).permute(0, 2, 3, 1).flatten(0, 2)
        for given_weight in (weight, weight.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(product_of_columns(x, given_weight), expected, atol=1e-12, rtol=1e-12)

    @pytest.mark.parametrize(("kernel", "limit", "raced"), [(7, 2**26, 1), (7, 100, 0), (3, 2**26, 0)])
    @torch.inference_mode()
    def test_on_a_card_either_way_is_the_layer(
        self, monkeypatch: pytest.MonkeyPatch, kernel: int, limit: int, raced: int
    ) -> None:
        torch.manual_seed(5)
        conv = nn.Conv2d(8, 11, kernel, padding=kernel // 2)
        x = torch.randn(2, 6, 5, 8)
        expected = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        monkeypatch.setattr(layers, "_is_half_on_card", lambda like: True)
        monkeypatch.setattr(layers, "_COLUMN_ELEMENTS", limit)
        # As on a card: the bias comes behind the product, whose answer has whole groups of channels.
        kernels = SimpleNamespace(add_bias=lambda y, bias, relu: y.add_(bias))
        monkeypatch.setattr(own, "own_kernels", lambda device: kernels)
        keys = []
        for number in (0, 1):

            def choose(key: object, candidates: list[Callable[[], Tensor]], number: int = number) -> Tensor:
                keys.append(key)
                return candidates[number]()

            monkeypatch.setattr(own, "fastest", choose)
            found = Conv(conv.weight, conv.bias, like=conv.weight)(x)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert len(keys) == 2 * raced


class TestCudaGraphs:
    """What does not need a card: which recording serves which batch, and what happens when there is none."""

    @staticmethod
    def record(net: nn.Module, example: Tensor) -> Recording:
        """As on CUDA: fixed input and output, computed only by a replay."""
        given, output = torch.full_like(example, float("nan")), net(example)

        def replay() -> None:
            output.copy_(net(given))

        return Recording(given, output, replay)

    @torch.inference_mode()
    def test_each_batch_size_has_its_recording_and_answers_outlive_the_next_replay(self) -> None:
        recorded: list[int] = []

        def record(net: nn.Module, example: Tensor) -> Recording:
            recorded.append(len(example))
            return self.record(net, example)

        net = nn.Linear(3, 2)
        graphed = Graphed(net, record)
        inputs = [torch.randn(size, 3) for size in (1, 2, 1, 2, 1)]
        answers = [graphed(x) for x in inputs]
        assert recorded == [1, 2]
        for x, answer in zip(inputs, answers, strict=True):
            torch.testing.assert_close(answer, net(x))

    @pytest.mark.parametrize(
        ("message", "detail"),
        [
            ("operation not permitted when stream is capturing\nlong trace",
             "RuntimeError: operation not permitted when stream is capturing"),
            ("", "RuntimeError: "),
        ],
    )  # fmt: skip
    @torch.inference_mode()
    def test_a_pass_that_cannot_be_recorded_runs_as_usual_with_one_warning(self, message: str, detail: str) -> None:
        def record(net: nn.Module, example: Tensor) -> Recording:
            raise RuntimeError(message)

        net, x = nn.Linear(3, 2), torch.randn(1, 3)
        graphed = Graphed(net, record)
        with capture_logs() as logs:
            for _ in range(3):
                torch.testing.assert_close(graphed(x), net(x))
        assert [entry["event"] for entry in logs] == ["cuda_graph_failed"]
        assert logs[0]["detail"] == detail

    def test_out_of_memory_while_recording_reaches_the_caller(self) -> None:
        def record(net: nn.Module, example: Tensor) -> Recording:
            raise torch.OutOfMemoryError("no room")

        with pytest.raises(torch.OutOfMemoryError):
            Graphed(nn.Linear(3, 2), record)(torch.randn(1, 3))

    @pytest.fixture
    def card(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """A card's calls, computed on the CPU: what was asked of it, in order."""
        asked: list[str] = []
        streams = iter("abcdefgh")

        class Stream:
            def __init__(self, device: object = None) -> None:
                self.name = next(streams)

            def wait_stream(self, other: "Stream") -> None:
                asked.append(f"{self.name} waits for {other.name}")

        current = Stream()

        @contextmanager
        def record(graph: object, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
            asked.append(f"record into {pool} on {stream.name}")
            yield

        @contextmanager
        def use_mem_pool(pool: SimpleNamespace) -> Iterator[None]:
            asked.append(f"into {pool.id}")
            try:
                yield
            finally:
                asked.append("out")

        class Graph:
            def replay(self) -> None:
                pass

        for name, value in {
            "graph": record, "CUDAGraph": Graph, "MemPool": lambda: SimpleNamespace(id="pool"), "Stream": Stream,
            "current_stream": lambda device=None: current, "stream": nullcontext, "device": nullcontext,
            "use_mem_pool": use_mem_pool, "empty_cache": lambda: asked.append("empty"),
        }.items():  # fmt: skip
            monkeypatch.setattr(f"torch.cuda.{name}", value)
        plain_clone = Tensor.clone

        def clone(x: Tensor) -> Tensor:
            asked.append(f"clone of {x.numel()}")
            return plain_clone(x)

        monkeypatch.setattr(Tensor, "clone", clone)
        graphs._pool.cache_clear()
        graphs._stream.cache_clear()
        yield asked
        graphs._pool.cache_clear()
        graphs._stream.cache_clear()

    class Keeping(nn.Module):
        """Keeps three numbers of its first pass; tells of its passes."""

        def __init__(self, asked: list[str], error: RuntimeError | None = None) -> None:
            super().__init__()
            self.kept = nn.Module()
            self.register_buffer("old", torch.zeros(1))
            self.asked, self.error = asked, error
            self.made: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self.kept, "weights"):
                self.made.append(torch.arange(3.0))
                self.kept.register_buffer("weights", self.made[0], persistent=False)
            if self.error is not None:
                raise self.error
            weights = self.kept.get_buffer("weights")
            self.asked.append("pass with what was made" if weights is self.made[0] else "pass with the copy")
            return x * weights

    def test_what_a_pass_keeps_leaves_the_memory_of_the_recordings(self, card: list[str]) -> None:
        """Replays write over whatever stands there."""
        net = self.Keeping(card)
        graphs.record_cuda_graph(net, torch.ones(1, 3))
        assert card == [
            "clone of 3", "empty", "record into pool on b", "b waits for a",
            "into pool", *["pass with what was made"] * 3, "out", "a waits for b", "clone of 3",
            "record into pool on b", "pass with the copy",
        ]  # fmt: skip
        assert torch.equal(net.kept.get_buffer("weights"), net.made[0])
        assert net.state_dict().keys() == {"old"}  # what is kept is still none of the network's weights
        card.clear()
        graphs.record_cuda_graph(net, torch.ones(2, 3))
        assert "record into pool on b" in card  # the same pool and stream, and nothing new to copy
        assert card.count("clone of 3") == 0

    def test_so_it_does_after_a_pass_that_fails(self, card: list[str]) -> None:
        net = self.Keeping(card, RuntimeError("cannot be recorded"))
        with pytest.raises(RuntimeError, match="cannot be recorded"):
            graphs.record_cuda_graph(net, torch.ones(1, 3))
        assert card[-3:] == ["out", "a waits for b", "clone of 3"]
        assert net.kept.get_buffer("weights") is not net.made[0]

    def test_a_network_with_addresses_of_its_own_makes_them_before(self, card: list[str]) -> None:
        class Prepared(self.Keeping):  # type: ignore[name-defined, misc]
            def prepare(self, x: Tensor) -> None:
                card.append("prepare")
                self(x)

        net = Prepared(card)
        graphs.record_cuda_graph(net, torch.ones(1, 3))
        assert card.index("prepare") < card.index("into pool")
        assert net.kept.get_buffer("weights") is net.made[0]

    def test_recordings_that_are_given_up_leave_no_pool_and_are_made_anew(self, card: list[str]) -> None:
        first, second = Graphed(self.Keeping(card)), Graphed(self.Keeping(card))
        for graphed in (first, second):
            graphed(torch.ones(1, 3))
        refused = torch.Size((7, 3))
        first._recordings[refused] = None
        pool, stream = weakref.ref(graphs._pool(torch.device("cpu"))), graphs._stream(torch.device("cpu"))
        graphs.forget_recordings()
        assert pool() is None
        assert (first._recordings, second._recordings) == ({refused: None}, {})
        card.clear()
        first(torch.ones(1, 3))
        assert "into pool" in card
        assert graphs._pool(torch.device("cpu")).stream is stream  # cuBLAS has a workspace for each there ever was


class TestCompiledPasses:
    def test_another_card_version_code_size_batch_or_type_is_another_file(
        self, toys: tuple[BiRefNet, FastBiRefNet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fast = toys[1]
        x = torch.zeros(1, 3, 64, 64)
        keys = [artefact_key(fast, x), artefact_key(fast, x[:, :, :32]), artefact_key(fast, x.half())]
        keys.append(artefact_key(fast, torch.zeros(2, 3, 64, 64)))
        keys.append(artefact_key(SimpleNamespace(config=CONFIGS["starter"]), x))  # type: ignore[arg-type]
        for name, value in (("torch.__version__", "9.9"), ("torch.version.cuda", "99.9")):
            with monkeypatch.context() as patch:
                patch.setattr(name, value)
                keys.append(artefact_key(fast, x))
        for part in ("card", "code"):
            keys.append({**keys[0], part: "another"})
        paths = {artefact_path(tmp_path, key) for key in keys}
        assert len(paths) == len(keys) == 9
        assert artefact_path(tmp_path, artefact_key(fast, x)) in paths  # the same again for the same

    def test_the_code_s_hash_follows_its_files(self, tmp_path: Path) -> None:
        (tmp_path / "fast").mkdir()
        (tmp_path / "fast" / "a.py").write_text("x = 1\n")
        first = code_hash(tmp_path)
        (tmp_path / "notes.txt").write_text("not code")
        assert code_hash(tmp_path) == first
        (tmp_path / "fast" / "a.py").write_text("x = 2\n")
        assert code_hash(tmp_path) != first

    def test_without_a_card_only_compiling_changes_the_network(
        self, toys: tuple[BiRefNet, FastBiRefNet], tmp_path: Path
    ) -> None:
        cpu, cuda = torch.device("cpu"), torch.device("cuda")
        fast = toys[1]
        assert all(accelerate(fast, cpu, mode, tmp_path) is fast for mode in ("auto", "graphs", "off"))
        assert isinstance(accelerate(fast, cpu, "aot", tmp_path), Compiled)
        assert accelerate(fast, cuda, "off", tmp_path) is fast
        assert all(isinstance(accelerate(fast, cuda, mode, tmp_path), Graphed) for mode in ("auto", "graphs"))
        both = accelerate(fast, cuda, "aot", tmp_path)
        assert isinstance(both, Graphed)
        assert isinstance(both.net, Compiled)

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
    @pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations are not ours
    @torch.no_grad()
    def test_a_second_start_compiles_nothing_and_a_file_serves_other_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Small(nn.Module):
            """Enough of a network to compile in seconds."""

            config = CONFIGS["toy"]

            def __init__(self) -> None:
                super().__init__()
                self.layer = Linear(torch.randn(4, 3), torch.randn(4), "gelu", like=torch.empty(0))

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.layer(x)
                return y

        x = torch.randn(2, 3)
        first, second = cast(FastBiRefNet, Small()), cast(FastBiRefNet, Small())
        with capture_logs() as logs:
            torch.testing.assert_close(Compiled(first, tmp_path)(x), first(x))
        assert [entry["event"] for entry in logs] == ["pass_compiled"]
        (file,) = tmp_path.iterdir()
        assert file.suffix == ".pt2"

        monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", None)
        with capture_logs() as logs:
            torch.testing.assert_close(Compiled(second, tmp_path)(x), second(x))
        assert logs == []

    @torch.inference_mode()
    def test_a_pass_that_cannot_be_compiled_runs_as_usual_with_one_warning(
        self, toys: tuple[BiRefNet, FastBiRefNet], tmp_path: Path
    ) -> None:
        folder = tmp_path / "file"
        folder.write_text("where the folder should be")
        compiled = Compiled(toys[1], folder)
        x = picture(32, 32)
        with capture_logs() as logs:
            for _ in range(2):
                torch.testing.assert_close(compiled(x), toys[1](x))
        assert [entry["event"] for entry in logs] == ["compile_failed"]
