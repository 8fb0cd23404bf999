"""Training on a card, as far as a processor shows it: supply of pictures, sampler, grown weights, a short run."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cuda import NEEDS_CUDA
from training import recipe
from training.card import FURTHER_BASE_SHARE, CardPhase, Learner, deform_conv2d_on_grid, learn, train
from training.data import drawn_assets
from training.supply import Reservoir, Supply, squashed
from training.train import CONFIG, Run, grown
from worker.nets import CONFIGS, BiRefNet, load_checkpoint, save_checkpoint
from worker.nets.deform_conv import deform_conv2d

ROOT = Path(__file__).parents[2]
#: Length of the runs here.
TINY_S = 3.0


@pytest.fixture
def init(tmp_path: Path) -> Path:
    """The weights that a run begins with."""
    path = tmp_path / "init.safetensors"
    save_checkpoint(BiRefNet(CONFIGS[CONFIG]), path, dtype=torch.float32)
    return path


def test_what_processes_draw_is_the_seed_s_samples() -> None:
    assets = drawn_assets()
    supply = Supply(assets, 5, 48, 64, processes=2, places=4)
    try:
        found = [picture.copy() for picture, _ in zip(supply.taken(at_least=6), range(6), strict=False)]
        expected = [squashed(assets, 5, index, 48) for index in range(12)]
        assert all(any(np.array_equal(picture, other) for other in expected) for picture in found)
        assert len({picture.tobytes() for picture in found}) == 6
        for _ in range(6):  # one at a time: no place is lost
            next(supply.taken(at_least=1))
        supply.resize(64)
        assert next(supply.taken(at_least=1)).shape == (64, 64, 4)
    finally:
        supply.close()


def test_processes_that_have_died_are_an_error_and_no_endless_wait() -> None:
    supply = Supply(drawn_assets(), 5, 48, 48, processes=1, places=2)
    supply.close()
    with pytest.raises(RuntimeError, match="have ended"):
        list(supply.taken(at_least=5))


def test_a_process_ends_with_more_free_places_than_a_pipe_holds() -> None:
    """Python waits at its end for what lies in a queue to be written, and nobody reads it any more."""
    program = (
        "from training.data import drawn_assets\n"
        "from training.supply import Supply\n"
        "supply = Supply(drawn_assets(), 5, 16, 16, processes=1, places=16_000)\n"
        "next(supply.taken(at_least=1))\n"
        "supply.close()\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_a_supply_of_what_is_hardest_draws_other_pictures() -> None:
    assets = drawn_assets()
    supply = Supply(assets, 5, 48, 48, processes=1, places=2, focus=True)
    try:
        found = [picture.copy() for picture, _ in zip(supply.taken(at_least=8), range(8), strict=False)]
    finally:
        supply.close()
    usual, hard = ([squashed(assets, 5, index, 48, focus).tobytes() for index in range(8)] for focus in (False, True))
    assert [picture.tobytes() for picture in found] == hard
    assert sum(a != b for a, b in zip(usual, hard, strict=True)) > 2


def test_a_run_that_goes_further_needs_weights_that_are_good_already() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "training.card", "--further"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "--init" in ended.stderr


def test_a_run_that_goes_further_keeps_what_batch_norms_have_counted(init: Path, tmp_path: Path) -> None:
    state = load_checkpoint(init, CONFIGS[CONFIG]).state_dict()
    weights = {key: value + 0.125 if key.endswith("running_mean") else value for key, value in state.items()}
    save_file(weights, init)
    found = _tiny_run(init, tmp_path, further=True)
    before, base, role = (
        load_checkpoint(path, CONFIGS[CONFIG]).state_dict()
        for path in (init, tmp_path / "base" / "ema.safetensors", found["rmbg"])
    )
    counted, learned = "decoder.decoder_block2.bn_in.running_mean", "decoder.decoder_block2.conv_in.weight"
    assert torch.equal(base[counted], before[counted])
    assert torch.equal(role[counted], before[counted])
    assert not torch.equal(base[learned], before[learned])
    assert not torch.equal(role[learned], base[learned])
    assert _seconds(tmp_path / "base") == pytest.approx(FURTHER_BASE_SHARE * TINY_S)
    assert _seconds(tmp_path / "rmbg") == pytest.approx((1 - FURTHER_BASE_SHARE) * TINY_S)


def test_a_folder_whose_run_began_otherwise_is_refused(init: Path, tmp_path: Path) -> None:
    _tiny_run(init, tmp_path)
    for changed in ({"further": True}, {"seed": 5}, {"peak_lr": 1e-4}):
        with pytest.raises(ValueError, match="began otherwise"):
            _tiny_run(init, tmp_path, **changed)
    other = tmp_path / "other.safetensors"
    torch.manual_seed(9)
    save_checkpoint(BiRefNet(CONFIGS[CONFIG]), other, dtype=torch.float32)
    with pytest.raises(ValueError, match="began otherwise"):
        _tiny_run(other, tmp_path)
    record = tmp_path / "beginning.json"
    for former in ("{", None):  # cut off, lost
        record.unlink() if former is None else record.write_text(former)
        with pytest.raises(ValueError, match="began otherwise"):
            _tiny_run(init, tmp_path)


def test_a_run_that_is_finished_is_left_as_it_is(init: Path, tmp_path: Path) -> None:
    found = _tiny_run(init, tmp_path, further=True)
    before = {role: (path.read_bytes(), path.stat().st_mtime_ns) for role, path in found.items()}
    assert _tiny_run(init, tmp_path, further=True, peak_lr=1.5e-3) == found  # the usual rate by its number
    assert {role: (path.read_bytes(), path.stat().st_mtime_ns) for role, path in found.items()} == before


def test_a_recipe_is_a_run_and_then_one_that_goes_further_from_its_mean(init: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.recipe", "--rehearse", "--minutes", "0.05", "--further-minutes", "0.05"]
    command += ["--rounds", "1", "--runs", str(tmp_path / "a b"), "--init", str(init)]
    results = [tmp_path / "a b" / "1" / f"{role}.safetensors" for role in ("rmbg", "birefnet")]
    before = None
    for _ in range(2):  # the second time nothing is left to do
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        found = [path.read_bytes() for path in results]
        assert before in (None, found)
        before = found
    assert found[0] != found[1]
    began = [json.loads((tmp_path / "a b" / number / "beginning.json").read_text()) for number in "01"]
    assert [run["further"] for run in began] == [False, True]
    means = (init, tmp_path / "a b" / "0" / "mean.safetensors")
    assert [run["init_sha256"] for run in began] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in means]


def test_a_recipe_publishes_the_mean_of_role_and_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"base": 1.0, "rmbg": 2.0, "birefnet": 4.0}
    model, published = BiRefNet(CONFIGS[CONFIG]), {}

    def run(folder: Path, minutes: float, seed: int, more: list[str]) -> None:
        for part, number in numbers.items():
            with torch.no_grad():
                for weight in model.parameters():
                    weight.fill_(number + 8 * int(folder.name))
            (folder / part).mkdir(parents=True)
            save_checkpoint(model, folder / part / "ema.safetensors", dtype=torch.float32)

    monkeypatch.setattr(recipe, "run", run)
    monkeypatch.setattr(recipe, "publish", lambda path, role: published.update({role: path}))
    monkeypatch.setattr(sys, "argv", ["recipe", "--rounds", "2", "--runs", str(tmp_path), "--publish"])
    assert recipe.main() == 0
    for role, expected in {"rmbg": (18 + 18 + 17 + 9) / 4, "birefnet": (20 + 20 + 17 + 9) / 4}.items():
        for weight in load_checkpoint(published[role], CONFIGS[CONFIG]).parameters():
            torch.testing.assert_close(weight, torch.full_like(weight, expected))


@pytest.mark.parametrize(
    "wrong", [["--rehearse", "--publish"], ["--seed", "-1"], ["--peak-lr", "0"]], ids=lambda wrong: wrong[0]
)
def test_a_wrong_option_ends_a_run_before_it_begins(wrong: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.card", "--runs", str(tmp_path), *wrong]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert wrong[0] in ended.stderr
    assert not any(tmp_path.iterdir())


def _tiny_run(init: Path, folder: Path, **beginning: Any) -> dict[str, Path]:
    tiny = (CardPhase(1.0, 64, 2, 64),)
    return train(
        drawn_assets(), torch.device("cpu"), TINY_S / 60, init, folder, 1, tiny, tiny, 8, 8, **beginning
    )  # fmt: skip


def _seconds(folder: Path) -> float:
    return float(torch.load(folder / "state.pt", weights_only=True)["used_s"])


@NEEDS_CUDA
def test_a_recorded_pass_finds_the_gradients_of_the_pass_itself(init: Path, tmp_path: Path) -> None:
    """A learner that records beside a run that does not, over two shapes."""
    device = torch.device("cuda")
    plain, other = (Run("base", 1, init, tmp_path / name, device) for name in ("a", "b"))
    _assert_same_steps(plain, Learner(other), device, tolerance=0.05)


class _FakeStream:
    def wait_stream(self, other: object) -> None:
        """Nothing runs beside anything else here."""


class _FakeGraph:
    """Replays by computing the recorded pass anew, into the same tensors, as a card does."""

    learner: Learner

    def replay(self) -> None:
        learner, run = self.learner, self.learner.run
        kept = [p.grad for p in run.learned]
        for p in run.learned:
            p.grad = None
        parts = run.back(learner._image, learner._alpha)
        for p, gradient in zip(run.learned, kept, strict=True):
            if gradient is not None and p.grad is not None:
                gradient.copy_(p.grad)
            p.grad = gradient
        for name, value in parts.items():
            learner._parts[name].copy_(value)


@contextmanager
def _fake_recording(graph: _FakeGraph, stream: _FakeStream) -> Iterator[None]:
    """A recording computes nothing: what batch norms count while it is made is forgotten."""
    run = graph.learner.run
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    added_to = [p.grad for p in run.learned if p.grad is not None]
    yield
    assert not added_to
    run.model.load_state_dict(before)


def test_a_learner_takes_the_steps_of_a_run_without_recordings(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a learner does around its recordings; the card itself is played by `_FakeGraph`."""
    plain, other = (Run("base", 1, init, tmp_path / name) for name in ("a", "b"))
    learner = Learner(other)
    learner._stream = cast(Any, _FakeStream())
    monkeypatch.setattr(_FakeGraph, "learner", learner, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", _fake_recording)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", _FakeStream)
    _assert_same_steps(plain, learner, torch.device("cpu"), tolerance=0)


def _assert_same_steps(plain: Run, learner: Learner, device: torch.device, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for number in range(12):
        size = 64 if number < 6 else 96
        image, alpha = (torch.rand(2, channels, size, size, generator=generator).to(device) for channels in (3, 1))
        plain.used_s = learner.run.used_s = 4.0 * number  # of 60: the learning rate changes
        expected = plain.find_gradients(image, alpha)
        plain.follow_gradients()
        found = learner.step(image, alpha)
        learner.join()
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=tolerance, atol=tolerance)
    assert learner._graph is not None
    for weight, other in zip(plain.learned, learner.run.learned, strict=True):
        torch.testing.assert_close(other, weight, rtol=tolerance, atol=tolerance)


def test_a_batch_takes_new_pictures_first_and_then_seen_ones_again() -> None:
    store = Reservoir(4, 8, torch.device("cpu"))
    for level in range(3):
        store.add(np.full((8, 8, 4), 40 * (level + 1), np.uint8))
    seen = [round(float(alpha.mean()) * 255) for alpha in store.batch(2)[1]]
    assert seen == [40, 80]
    again = [round(float(alpha.mean()) * 255) for alpha in store.batch(4)[1]]
    assert again[0] == 120
    assert set(again[1:]) <= {40, 80, 120}
    for level in range(3, 7):
        store.add(np.full((8, 8, 4), 20 + level, np.uint8))
    assert sorted(round(float(alpha.mean()) * 255) for alpha in store.batch(4)[1]) == [23, 24, 25, 26]


def test_a_mirrored_picture_keeps_its_alpha_beside_it() -> None:
    store = Reservoir(1, 16, torch.device("cpu"))
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[:, :5] = 255
    store.add(picture)
    image, alpha = store.batch(16)
    inside = (image.mean(dim=1, keepdim=True) > 0).float()
    torch.testing.assert_close(inside, alpha)
    assert 0 < float(alpha[:, 0, 0, 0].mean()) < 1  # some are mirrored, some are not


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_the_sampler_gives_the_values_and_gradients_of_the_plain_convolution(kernel: int) -> None:
    generator = torch.Generator().manual_seed(kernel)
    x = torch.randn(2, 5, 9, 12, generator=generator)
    offset = 3 * torch.randn(2, 2 * kernel**2, 9, 12, generator=generator)
    mask = torch.rand(2, kernel**2, 9, 12, generator=generator)
    weight = torch.randn(4, 5, kernel, kernel, generator=generator)
    results = []
    for convolve in (deform_conv2d, deform_conv2d_on_grid):
        leaves = [value.clone().requires_grad_() for value in (x, offset, mask, weight)]
        y = convolve(*leaves)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()  # type: ignore[no-untyped-call]
        results.append([y, *(leaf.grad for leaf in leaves)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


def test_weights_of_a_narrower_network_are_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(3)
    old = BiRefNet(CONFIGS[CONFIG]).state_dict()
    narrow = {**old, "decoder.detail.conv_mid.weight": old["decoder.detail.conv_mid.weight"][:8, :8].contiguous()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    state = load_checkpoint(grown(tmp_path / "narrow.safetensors", tmp_path, 5), CONFIGS[CONFIG]).state_dict()
    torch.testing.assert_close(state["bb.stem.conv.weight"], old["bb.stem.conv.weight"])
    wide = state["decoder.detail.conv_mid.weight"]
    torch.testing.assert_close(wide[:8, :8], old["decoder.detail.conv_mid.weight"][:8, :8])
    assert 0 < float(wide[8:].std()) < float(old["decoder.detail.conv_mid.weight"].std())


def test_a_short_run_trains_a_base_and_both_roles_on_one_supply(init: Path, tmp_path: Path) -> None:
    tiny = (CardPhase(0.5, 64, 2, 96), CardPhase(0.7, 96, 2, 96), CardPhase(1.0, 96, 2, 128))
    found = train(drawn_assets(), torch.device("cpu"), 0.05, init, tmp_path, 1, tiny, tiny, 8, 8)
    states = {role: load_checkpoint(path, CONFIGS[CONFIG]).state_dict() for role, path in found.items()}
    base = load_checkpoint(tmp_path / "base" / "ema.safetensors", CONFIGS[CONFIG]).state_dict()
    key = "decoder.detail.conv_mid.weight"
    assert len({state[key].numpy().tobytes() for state in (base, *states.values())}) == 3
    assert deform_conv2d.__name__ == "deform_conv2d"


def test_both_roles_learn_from_the_same_batches(init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.card.STORE_EVERY_S", 2)
    stored: list[BiRefNet] = []
    plain_save = Run.save

    def save(run: Run) -> None:
        stored.append(load_checkpoint(run.folder / "latest.safetensors", CONFIGS[CONFIG]))
        plain_save(run)

    monkeypatch.setattr(Run, "save", save)
    device = torch.device("cpu")
    runs = [Run(role, 1, init, tmp_path / role, device) for role in ("rmbg", "birefnet")]
    supply = Supply(drawn_assets(), 5, 64, 64, processes=1, places=4)
    ticks = iter(range(100))
    try:
        learn(runs, supply, (CardPhase(1.0, 64, 2, 64),), 3, {}, kept=4, clock=lambda: float(next(ticks)))
    finally:
        supply.close()
    assert [(run.step, run.seen) for run in runs] == [(2, 4), (2, 4)]
    for run, latest in zip(runs, stored, strict=True):  # after the second of the two steps, the last before the end
        for weight, expected in zip(latest.parameters(), run.averaged().parameters(), strict=True):
            torch.testing.assert_close(weight, expected, atol=1e-3, rtol=1e-3)
        assert not (run.folder / "latest.safetensors").exists()
