"""A training run: it goes on where it was, learns, leaves frozen layers alone; and the terms that it minimises."""

from pathlib import Path

import pytest
import torch

from training import train
from training.data import drawn_assets
from training.losses import contour_weight, laplacian_loss
from training.train import Phase, Run
from worker.nets import CONFIGS, BiRefNet, load_checkpoint, save_checkpoint


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of random weights to start from, and a schedule of tiny pictures."""
    monkeypatch.setitem(train.SCHEDULES, "rmbg", (Phase(1.0, 64, 2),))
    torch.manual_seed(0)
    path = tmp_path / "start.safetensors"
    save_checkpoint(BiRefNet(CONFIGS[train.CONFIG]), path)
    return path


def steps(run: Run, count: int) -> list[float]:
    supply = run._batches(drawn_assets(), train.SCHEDULES["rmbg"][0])
    losses = []
    for _ in range(count):
        losses.append(float(run._one_step(*next(supply), 0.0)["loss"]))
        run.seen += 2
    return losses


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(start: Path, tmp_path: Path) -> None:
    whole = Run("rmbg", 60, start, tmp_path / "whole")
    expected = steps(whole, 3)
    first = Run("rmbg", 60, start, tmp_path / "parts")
    found = steps(first, 1)
    first.used_s = 0.0  # the clock is no part of the comparison
    first.save()
    second = Run("rmbg", 60, start, tmp_path / "parts")
    assert (second.step, second.seen) == (1, 2)
    found += steps(second, 2)
    assert found == pytest.approx(expected, rel=0.02)


def test_training_changes_the_decoder_and_leaves_the_early_layers_alone(start: Path, tmp_path: Path) -> None:
    run = Run("rmbg", 60, start, tmp_path / "run")
    steps(run, 2)
    run.save()
    before = load_checkpoint(start, CONFIGS[train.CONFIG]).state_dict()
    after = load_checkpoint(tmp_path / "run" / "ema.safetensors", CONFIGS[train.CONFIG]).state_dict()
    early = ("bb.stem", "bb.stages.0.", "bb.stages.1.")
    for key, value in after.items():
        if key.startswith(early):
            assert torch.equal(value, before[key]), key
    learned = [key for key in after if key.endswith("conv_in.weight") and not torch.equal(after[key], before[key])]
    assert len(learned) == 6  # the squeeze, four blocks, the detail stage


def test_contours_count_more_than_even_regions() -> None:
    target = torch.zeros(1, 1, 64, 64)
    target[..., 32:] = 1
    weight = contour_weight(target, 4.0)
    assert float(weight[0, 0, 32, 2]) == 1
    assert 2.5 < float(weight[0, 0, 32, 32]) <= 3.1
    assert torch.equal(contour_weight(target, 0.0), torch.ones_like(target))


def test_the_laplacian_sees_a_lost_edge_and_no_even_shift() -> None:
    target = torch.zeros(1, 1, 64, 64)
    target[..., 32:] = 1
    blurred = torch.nn.functional.avg_pool2d(target, 9, 1, 4, count_include_pad=False)
    assert float(laplacian_loss(target, target)) == 0
    assert float(laplacian_loss(blurred, target)) > 0.02
    assert float(laplacian_loss(torch.full_like(target, 0.3), torch.full_like(target, 0.6))) < 1e-6


def test_shared_gradients_reach_the_weights_that_they_belong_to(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused optimiser reads memory, not shapes: a gradient in another memory order would be taken for noise."""
    monkeypatch.setitem(train.PEAK_LR, "rmbg", 0.1)
    run, reference = (Run("rmbg", 60, start, tmp_path / name) for name in ("fused", "plain"))
    reference.optimiser = torch.optim.AdamW(reference._groups(), lr=0.1, fused=False, foreach=False)
    losses = steps(run, 1), steps(reference, 1)
    assert losses[0] == losses[1]
    for (name, weight), expected in zip(run.model.named_parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5, msg=name)
