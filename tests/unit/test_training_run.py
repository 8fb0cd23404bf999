"""A training run: it goes on where it was, learns, leaves frozen layers alone; and the terms that it minimises."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training import train
from training.data import drawn_assets
from training.losses import contour_weight, laplacian_loss
from training.mean import mean_of
from training.train import REFINE, Phase, Plan, Run, grown
from worker.nets import CONFIGS, BiRefNet, load_checkpoint, save_checkpoint
from worker.nets.weights import CheckpointError


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
    assert len(learned) == 7  # the squeeze, four blocks, the detail and the refining stage


def test_a_run_for_the_refining_stage_changes_nothing_else(start: Path, tmp_path: Path) -> None:
    run = Run("rmbg", 60, start, tmp_path / "run", plan=Plan(refine_only=True))
    steps(run, 2)
    run.save()
    before = load_checkpoint(start, CONFIGS[train.CONFIG]).state_dict()
    after = load_checkpoint(tmp_path / "run" / "ema.safetensors", CONFIGS[train.CONFIG]).state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed
    assert all(key.startswith(REFINE) for key in changed)


def test_a_run_that_goes_further_keeps_what_batch_norms_have_counted(start: Path, tmp_path: Path) -> None:
    run = Run("rmbg", 60, start, tmp_path / "run", plan=Plan(further=True))
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    steps(run, 2)
    changed = {key for key, value in run.model.state_dict().items() if not torch.equal(value, before[key])}
    counted = {key for key in changed if "running_" in key}
    assert counted
    assert all(key.startswith(REFINE) for key in counted)
    assert any(key.startswith("bb.") for key in changed)
    assert any(key.startswith("squeeze_module") for key in changed)


def test_the_refining_stage_learns_faster_where_it_learns_alone(start: Path, tmp_path: Path) -> None:
    def shares(plan: Plan, role: str = "rmbg") -> dict[str, float]:
        run = Run(role, 60, start, tmp_path / "run", plan=plan)
        names = {id(p): name for name, p in run.model.named_parameters()}
        parts = ("bb.cue", "bb", "squeeze_module", REFINE, "decoder")
        return {
            next(part for part in parts if names[id(p)].startswith(part)): group["share"]
            for group in run.optimiser.param_groups
            for p in group["params"]
        }

    usual = {"bb": train.BACKBONE_SHARE, "bb.cue": 1.0, "squeeze_module": 1.0, "decoder": 1.0, REFINE: 1.0}
    assert shares(Plan()) == pytest.approx(usual)
    for role in ("rmbg", "base"):
        assert shares(Plan(further=True), role) == pytest.approx(usual)
        assert shares(Plan(refine_only=True), role) == pytest.approx({REFINE: train.REFINE_SHARE})


def test_another_seed_draws_other_pictures_and_the_roles_own_the_same(start: Path, tmp_path: Path) -> None:
    def first(plan: Plan) -> torch.Tensor:
        run = Run("rmbg", 60, start, tmp_path / "run", plan=plan)
        return next(run._batches(drawn_assets(), train.SCHEDULES["rmbg"][0]))[0]

    assert torch.equal(first(Plan()), first(Plan(seed=train.SEEDS["rmbg"])))
    assert not torch.equal(first(Plan()), first(Plan(seed=5)))


def test_a_folder_of_a_run_with_another_plan_is_refused(start: Path, tmp_path: Path) -> None:
    Run("rmbg", 60, start, tmp_path / "run", plan=Plan(refine_only=True)).save()
    with pytest.raises(ValueError, match="another plan"):
        Run("rmbg", 60, start, tmp_path / "run", plan=Plan(refine_only=True, further=True))


def test_a_run_goes_on_with_its_own_seed_alone_also_one_of_before_there_were_any(start: Path, tmp_path: Path) -> None:
    run = Run("rmbg", 60, start, tmp_path / "run")
    run.save()
    state = torch.load(run.state_path, weights_only=True)
    del state["plan"]["seed"], state["plan"]["peak_lr"]
    torch.save(state, run.state_path)
    Run("rmbg", 60, start, tmp_path / "run")
    Run("rmbg", 60, start, tmp_path / "run", plan=Plan(seed=train.SEEDS["rmbg"]))
    for other in (Plan(seed=5), Plan(peak_lr=1e-5)):
        with pytest.raises(ValueError, match="another plan"):
            Run("rmbg", 60, start, tmp_path / "run", plan=other)


def test_the_learning_rate_that_is_asked_for_is_the_largest(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(train, "spawn", lambda _, arguments, nprocs: plans.append(arguments[-1]))
    options = ["--role", "rmbg", "--init", str(start), "--runs", str(tmp_path), "--peak-lr", "3e-5"]
    monkeypatch.setattr("sys.argv", ["train", *options])
    assert train.main() == 0
    run = Run("rmbg", 60, start, tmp_path / "run", plan=plans[0])
    run.step = train.WARM_UP_STEPS
    run.prepare()
    assert max(group["lr"] for group in run.optimiser.param_groups) == pytest.approx(3e-5)


def test_early_layers_learn_in_a_base_and_in_usual_roles_alone() -> None:
    assert train.polishes("rmbg", Plan(further=True))
    assert not train.polishes("base", Plan(further=True))
    assert not train.polishes("rmbg", Plan())


@pytest.mark.parametrize(
    "arguments",
    [["--seed", "5"], ["--role", "base", "--seed", "-1"], ["--peak-lr", "1e-4"], ["--role", "base", "--peak-lr", "0"]],
)
def test_a_seed_or_rate_for_all_roles_or_below_its_range_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    assert arguments[-2] in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--further", "--refine"])
def test_a_plan_without_weights_to_begin_with_is_refused(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--role", "rmbg", flag])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    assert "--init" in capsys.readouterr().err


def stored(tmp_path: Path, **change: int) -> tuple[BiRefNet, Path]:
    """A network of other widths, and its file."""
    torch.manual_seed(1)
    old = BiRefNet(replace(CONFIGS[train.CONFIG], **change)).eval()  # type: ignore[arg-type]
    save_checkpoint(old, tmp_path / "old.safetensors", dtype=torch.float32)
    return old, tmp_path / "old.safetensors"


@pytest.mark.parametrize(
    "change", [{"refine_width": 0}, {"block_width": 48}, {"detail_width": 16}, {"refine_width": 8}]
)
def test_weights_of_less_width_mean_the_same_in_todays_network(change: dict[str, int], tmp_path: Path) -> None:
    old, path = stored(tmp_path, **change)
    new = load_checkpoint(grown(path, tmp_path, 5), CONFIGS[train.CONFIG])
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(new(x), old(x), atol=1e-5, rtol=0)


def test_weights_of_more_width_or_of_another_network_are_refused(tmp_path: Path) -> None:
    _, wide = stored(tmp_path, detail_width=48)
    with pytest.raises(CheckpointError, match=r"shape: decoder\.detail"):
        grown(wide, tmp_path, 5)
    save_checkpoint(BiRefNet(CONFIGS["toy"]), tmp_path / "toy.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        grown(tmp_path / "toy.safetensors", tmp_path, 5)


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


def test_a_gradient_that_is_not_finite_moves_nothing(start: Path, tmp_path: Path) -> None:
    run = Run("rmbg", 60, start, tmp_path / "run")
    steps(run, 1)
    before = [p.detach().clone() for p in run.learned]
    moments = [run.optimiser.state[p]["exp_avg"].clone() for p in run.learned]
    run.learned[0].grad = torch.full_like(run.learned[0], float("nan"))
    run.follow_gradients()
    for p, old, moment in zip(run.learned, before, moments, strict=True):
        assert torch.equal(p, old)
        assert torch.equal(run.optimiser.state[p]["exp_avg"], moment)
    steps(run, 1)
    assert not torch.equal(run.learned[0], before[0])
    assert all(torch.isfinite(p).all() for p in run.learned)


class Unfused(torch.optim.AdamW):
    """Which takes no word of gradients that are not finite, as only the fused one does."""

    found_inf = property(lambda self: None, lambda self, value: None)


def test_shared_gradients_reach_the_weights_that_they_belong_to(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused optimiser reads memory, not shapes: a gradient in another memory order would be taken for noise."""
    monkeypatch.setitem(train.PEAK_LR, "rmbg", 0.1)
    run, reference = (Run("rmbg", 60, start, tmp_path / name) for name in ("fused", "plain"))
    reference.optimiser = Unfused(reference._groups(), lr=0.1, fused=False, foreach=False)
    losses = steps(run, 1), steps(reference, 1)
    assert losses[0] == losses[1]
    for (name, weight), expected in zip(run.model.named_parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5, msg=name)


def test_the_mean_of_two_checkpoints_is_between_them_and_takes_what_only_one_has(tmp_path: Path) -> None:
    before, _ = stored(tmp_path, refine_width=0)
    torch.manual_seed(2)
    after = BiRefNet(CONFIGS[train.CONFIG])
    save_checkpoint(after, tmp_path / "after.safetensors", dtype=torch.float32)
    found = mean_of([tmp_path / "old.safetensors", tmp_path / "after.safetensors"]).state_dict()
    old, new = before.state_dict(), after.state_dict()
    key = "squeeze_module.0.conv_in.weight"
    torch.testing.assert_close(found[key], (old[key] + new[key]) / 2)
    key = f"{REFINE}conv_in.weight"
    torch.testing.assert_close(found[key], new[key])


def test_there_is_no_mean_of_different_networks(tmp_path: Path) -> None:
    _, narrow = stored(tmp_path, refine_width=0)
    with pytest.raises(CheckpointError, match="missing: decoder"):
        mean_of([narrow])
    save_checkpoint(BiRefNet(CONFIGS[train.CONFIG]), tmp_path / "after.safetensors", dtype=torch.float32)
    _, wide = stored(tmp_path, detail_width=48)
    with pytest.raises(CheckpointError, match=r"shape: decoder\.detail"):
        mean_of([tmp_path / "after.safetensors", wide])
