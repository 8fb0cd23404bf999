"""Which weights a model gets, and one model on one device."""

import hashlib
import weakref
from pathlib import Path

import pytest
import torch

from shared.errors import FatalError, InferenceFailed, OutOfDeviceMemory
from shared.settings import load_settings
from worker.engine import Engine, pick_device
from worker.nets import CONFIGS, BiRefNet, CheckpointError, save_checkpoint
from worker.registry import ModelSpec, resolve_models


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    """A toy network with real weights on disk."""
    torch.manual_seed(0)
    path = tmp_path / "toy.safetensors"
    save_checkpoint(BiRefNet(CONFIGS["toy"]), path)
    return ModelSpec("rmbg", "starter", "toy", path, "MIT")


@pytest.fixture
def engine(spec: ModelSpec) -> Engine:
    return Engine(spec, torch.device("cpu"), use_fp16=True)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


class TestResolving:
    def test_auto_takes_published_weights_where_they_are_and_starter_weights_elsewhere(self, tmp_path: Path) -> None:
        published = touch(tmp_path / "BiRefNet" / "model.safetensors")
        for name in ("rmbg", "birefnet"):
            touch(tmp_path / "starter" / f"{name}.safetensors")
        rmbg, birefnet = resolve_models(load_settings(models_dir=tmp_path))
        assert (rmbg.profile, rmbg.variant, rmbg.licence) == ("starter", "starter", "MIT")
        assert (birefnet.profile, birefnet.variant, birefnet.path) == ("full", "swin_v1_large", published)

    def test_published_rmbg_says_that_its_licence_is_not_commercial(self, tmp_path: Path) -> None:
        touch(tmp_path / "RMBG-2.0" / "model.safetensors")
        (rmbg,) = resolve_models(load_settings(models_dir=tmp_path, models="rmbg"))
        assert rmbg.licence == "CC BY-NC 4.0"

    @pytest.mark.parametrize("profile", ["full", "starter", "auto"])
    def test_missing_files_are_all_listed_with_what_to_run(self, tmp_path: Path, profile: str) -> None:
        with pytest.raises(FatalError) as caught:
            resolve_models(load_settings(models_dir=tmp_path, model_profile=profile))
        message = str(caught.value)
        assert message.startswith("FATAL ERROR: Model files not found")
        assert "rmbg:" in message
        assert "birefnet:" in message
        assert "make download-models" in message

    def test_an_unknown_model_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FatalError, match="nobody"):
            resolve_models(load_settings(models_dir=tmp_path, models="rmbg,nobody"))


class TestAnEngine:
    def test_masks_have_the_input_s_size_and_range(self, engine: Engine) -> None:
        masks = engine.masks(torch.randn(2, 3, 64, 64))
        assert masks.shape == (2, 64, 64)
        assert masks.dtype == torch.float32
        assert 0 <= float(masks.min()) < float(masks.max()) <= 1

    def test_exactly_one_sigmoid_is_applied(self, engine: Engine) -> None:
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            logits = engine._net(x)
        torch.testing.assert_close(engine.masks(x), logits[:, 0].sigmoid())

    def test_the_cpu_computes_in_full_precision(self, engine: Engine) -> None:
        assert engine.dtype == torch.float32

    def test_it_warms_up(self, engine: Engine) -> None:
        assert engine.warm_up() > 0

    def test_an_input_that_gives_no_finite_answer_fails_clearly(self, engine: Engine) -> None:
        with pytest.raises(InferenceFailed, match="no finite answer for 1 of 2"):
            engine.masks(torch.stack((torch.zeros(3, 64, 64), torch.full((3, 64, 64), float("nan")))))

    def test_only_items_that_overflowed_are_computed_again_in_full_precision(self, engine: Engine) -> None:
        """As on a GPU in fp16: the first pass gives inf for one item, the exact network repairs that one."""
        x = torch.randn(2, 3, 64, 64)
        right = engine.masks(x)
        exact = engine._net

        def overflowing(batch: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = exact(batch).clone()
            logits[1, 0, 3, 3] = float("inf")
            return logits

        engine._net = overflowing  # type: ignore[assignment]
        engine.dtype = torch.float16
        torch.testing.assert_close(engine.masks(x), right, atol=2e-3, rtol=0)

    def test_a_device_error_becomes_ours(self, engine: Engine) -> None:
        with pytest.raises(InferenceFailed, match="rmbg failed on cpu"):
            engine.masks(torch.randn(1, 4, 64, 64))

    def test_a_file_of_another_network_is_refused(self, spec: ModelSpec) -> None:
        wrong = ModelSpec("rmbg", "starter", "starter", spec.path, "MIT")
        with pytest.raises(CheckpointError, match="does not fit its network"):
            Engine(wrong, torch.device("cpu"), use_fp16=False)

    def test_its_weights_are_known_by_their_content(self, engine: Engine, spec: ModelSpec) -> None:
        assert engine.weights_id == hashlib.sha256(spec.path.read_bytes()).hexdigest()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_cuda_device_that_is_not_there_stops_the_start() -> None:
    assert pick_device(load_settings()).type == "cpu"
    with pytest.raises(FatalError, match="torch sees no CUDA device"):
        pick_device(load_settings(device="cuda:0"))


def test_without_room_everything_that_the_failed_pass_held_is_let_go(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halves of the batch are computed while the error is still known, and have to find its memory free."""
    held: list[weakref.ref[torch.Tensor]] = []
    seen: list[str] = []

    def full(batch: torch.Tensor) -> torch.Tensor:
        values = torch.zeros(3)
        held.append(weakref.ref(values))
        raise torch.OutOfMemoryError("no room")

    def empty_cache() -> None:
        seen.append("empty" if held[0]() is None else "empty, but it is held")

    monkeypatch.setattr(engine, "_net", full)
    monkeypatch.setattr("worker.engine.forget_recordings", lambda: seen.append("forget"))
    monkeypatch.setattr("torch.cuda.empty_cache", empty_cache)
    with pytest.raises(OutOfDeviceMemory):
        engine.masks(torch.zeros(2, 3, 64, 64))
    assert seen == ["forget", "empty"]
