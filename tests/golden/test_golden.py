"""The networks against tensors of the official implementation (tests/golden/README.md has the tolerances)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cuda import NEEDS_CUDA
from tests.golden import fill_recipe
from worker.nets import CONFIGS, BiRefNet, load_checkpoint, save_checkpoint
from worker.nets.fast import prepare_for_inference

HERE = Path(__file__).parent
CASES = {
    "swin_v1_t_256x256": ("swin_v1_tiny", 256, 256),
    "swin_v1_l_512x512": ("swin_v1_large", 512, 512),
}
#: float32 on the CPU: logits, maximum and mean of the absolute difference.
LOGITS_MAX, LOGITS_MEAN = 5e-4, 5e-5
#: What both forms keep to here; the largest measured is 2.2e-5.
OURS_MAX = 5e-5
#: The network as published, and its form for inference.
FORMS = {"plain": lambda model: model, "fast": prepare_for_inference}


def filled(variant: str) -> BiRefNet:
    model: BiRefNet = fill_recipe.fill(BiRefNet(CONFIGS[variant]).eval())
    return model


def test_every_stored_vector_has_its_case() -> None:
    assert {path.stem for path in HERE.glob("*.npz")} == set(CASES)


@pytest.mark.parametrize("variant", ["swin_v1_tiny", "swin_v1_large"])
def test_the_key_layout_is_the_official_one(variant: str) -> None:
    short = {"swin_v1_tiny": "t", "swin_v1_large": "l"}[variant]
    official = json.loads((HERE / f"keys_swin_v1_{short}.json").read_text())
    with torch.device("meta"):
        state = BiRefNet(CONFIGS[variant]).state_dict()
    ours = {
        key: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for key, value in state.items()
    }
    assert ours == official


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_logits_agree_with_the_official_implementation(case: str) -> None:
    variant, height, width = CASES[case]
    golden = np.load(HERE / f"{case}.npz")
    model = filled(variant)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert fill_recipe.digest(shapes) == int(golden["param_digest"])

    for form, make in FORMS.items():
        logits = make(model)(fill_recipe.image_tensor(height, width))

        assert logits.shape == (1, 1, height, width)
        difference = fill_recipe.compare(HERE / f"{case}.npz", logits[0, 0].numpy())
        assert difference["max"] <= OURS_MAX, (form, difference)
        assert difference["edges_max"] <= OURS_MAX, (form, difference)
        assert difference["mean"] <= LOGITS_MEAN, (form, difference)


@torch.inference_mode()
def test_a_wrong_network_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself works: one deliberate error (tanh GELU) is beyond the tolerance."""
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr("worker.nets.swin.F.gelu", lambda x: gelu(x, approximate="tanh"))
    logits = filled("swin_v1_tiny")(fill_recipe.image_tensor(256, 256))
    difference = fill_recipe.compare(HERE / "swin_v1_t_256x256.npz", logits[0, 0].numpy())
    assert difference["max"] > LOGITS_MAX


@pytest.mark.slow
@torch.inference_mode()
def test_a_saved_and_loaded_network_gives_the_same_logits(tmp_path: Path) -> None:
    save_checkpoint(filled("swin_v1_tiny"), tmp_path / "model.safetensors", dtype=torch.float32)
    model = load_checkpoint(tmp_path / "model.safetensors", CONFIGS["swin_v1_tiny"])
    logits = model(fill_recipe.image_tensor(256, 256))
    assert fill_recipe.compare(HERE / "swin_v1_t_256x256.npz", logits[0, 0].numpy())["max"] <= LOGITS_MAX


@pytest.mark.slow
@torch.inference_mode()
def test_half_precision_weights_stay_close(tmp_path: Path) -> None:
    """An fp16 file, computed in fp32: what a CPU does with the published fp16 checkpoint."""
    save_checkpoint(filled("swin_v1_tiny"), tmp_path / "model.safetensors", dtype=torch.float16)
    model = load_checkpoint(tmp_path / "model.safetensors", CONFIGS["swin_v1_tiny"])
    logits = model(fill_recipe.image_tensor(256, 256))
    difference = fill_recipe.compare(HERE / "swin_v1_t_256x256.npz", logits[0, 0].numpy())
    assert difference["alpha_max"] <= 0.015, difference
    assert difference["alpha_mean"] <= 0.0015, difference


@pytest.mark.slow
@torch.inference_mode()
def test_the_whole_network_in_fp16_stays_within_the_suggested_limits() -> None:
    """What CUDA computes, as far as a machine without a card can show it; only sampling positions are in fp32."""
    model = prepare_for_inference(filled("swin_v1_tiny").half())
    logits = model(fill_recipe.image_tensor(256, 256).half())
    difference = fill_recipe.compare(HERE / "swin_v1_t_256x256.npz", logits[0, 0].float().numpy())
    assert difference["alpha_max"] <= 0.015, difference
    assert difference["alpha_mean"] <= 0.0015, difference


@pytest.mark.slow
@NEEDS_CUDA
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_fp16_on_cuda_stays_within_the_suggested_limits(case: str, form: str) -> None:
    variant, height, width = CASES[case]
    model = FORMS[form](filled(variant).half().cuda())
    logits = model(fill_recipe.image_tensor(height, width).half().cuda())
    difference = fill_recipe.compare(HERE / f"{case}.npz", logits[0, 0].float().cpu().numpy())
    assert difference["alpha_max"] <= 0.015, difference
    assert difference["alpha_mean"] <= 0.0015, difference
