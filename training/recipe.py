"""The starter weights from nothing on a CUDA card: a usual run, then runs that go further, each from the one before.

    python -m training.recipe --publish          # 8 minutes and twice 13, then into models/starter

Between two runs stands the mean of both roles (mean.py); a role is in the end the mean of twice itself, once its base
and once the base of the run before, as the weights in git are. A recipe that was cut off goes on from its last finished
part. Each run is a process of its own, since those that draw are forked before CUDA is used.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from training.evaluate import ROLES
from training.mean import store_mean
from training.train import RUNS, publish

#: Seeds of the runs' pictures: none sees another's.
SEEDS = (404, 505, 909, 1212, 1313)
#: Of the base in runs that go further: less than a run from nothing has (train.PEAK_LR), so that more is kept.
FURTHER_PEAK_LR = "6e-4"


def averaged(checkpoints: list[Path], out: Path) -> Path:
    """Where the mean of some checkpoints is; one that is there stays.

    The same weights need not be the same bytes (safetensors orders what it says of a file anew each time), and the next
    run knows by its bytes what it began with.
    """
    if not out.exists():
        store_mean(checkpoints, out)
    return out


def run(folder: Path, minutes: float, seed: int, more: list[str]) -> None:
    """One run of training.card in a folder; nothing is left to do where it is finished.

    Raises:
        subprocess.CalledProcessError: it failed; its own words stand above.
    """
    command = [sys.executable, "-m", "training.card", "--runs", str(folder), "--minutes", str(minutes)]
    subprocess.run([*command, "--seed", str(seed), *more], check=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.recipe", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="of the first run")
    parser.add_argument("--further-minutes", type=float, default=13.0, help="of each that goes further")
    parser.add_argument("--rounds", type=int, default=2, choices=range(1, len(SEEDS)), help="that go further")
    parser.add_argument(
        "--init", type=Path, help="checkpoint for the first (default: ImageNet weights for the backbone)"
    )
    parser.add_argument("--runs", type=Path, default=RUNS / "recipe", help="folder of the runs")
    parser.add_argument("--publish", action="store_true", help="put the results into models/starter")
    parser.add_argument("--rehearse", action="store_true", help="tiny pictures of simple shapes on the CPU")
    options = parser.parse_args()
    if options.rehearse and options.publish:
        parser.error("--rehearse has nothing to publish")
    more = ["--rehearse"] if options.rehearse else []
    start = [] if options.init is None else ["--init", str(options.init)]
    try:
        for number, seed in enumerate(SEEDS[: options.rounds + 1]):
            folder = options.runs / str(number)
            run(folder, options.further_minutes if number else options.minutes, seed, start + more)
            found = {role: folder / role / "ema.safetensors" for role in ROLES}
            mean = averaged(list(found.values()), folder / "mean.safetensors")
            start = ["--init", str(mean), "--further", "--peak-lr", FURTHER_PEAK_LR]
    except subprocess.CalledProcessError as error:
        return error.returncode
    bases = [options.runs / str(number) / "base" / "ema.safetensors" for number in (options.rounds, options.rounds - 1)]
    for role, checkpoint in found.items():
        result = averaged([checkpoint, checkpoint, *bases], folder / f"{role}.safetensors")
        print(f"{role}: {result}")
        if options.publish:
            publish(result, role)
    return 0


if __name__ == "__main__":
    sys.exit(main())
