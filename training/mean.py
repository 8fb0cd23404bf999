"""The mean of checkpoints of one run's beginning and its end: it forgets less of what the run did not ask for.

    python -m training.mean BEFORE.safetensors AFTER.safetensors --out models/starter/rmbg.safetensors

Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv 2109.01903), section 3. A weight that only
some of the checkpoints have is the mean of theirs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.train import CONFIG
from worker.nets import CONFIGS, BiRefNet
from worker.nets.weights import CheckpointError, check_keys, save_checkpoint


def mean_of(paths: Sequence[Path]) -> BiRefNet:
    """A network in evaluation mode, with the mean of some checkpoints' weights and running statistics.

    Raises:
        CheckpointError: together they are not today's network, or one has what it has not.
    """
    model = BiRefNet(CONFIGS[CONFIG]).eval()
    found: dict[str, list[Tensor]] = {}
    for path in paths:
        for key, value in load_file(path).items():
            found.setdefault(key, []).append(value)
    state = model.state_dict()
    shapes = {key: tuple(values[0].shape) for key, values in found.items()}
    problems = check_keys({key: value.shape for key, value in state.items()}, shapes)
    problems += [f"shape: {key} differs" for key, values in found.items() if len({v.shape for v in values}) > 1]
    if problems:
        raise CheckpointError(f"no mean of {', '.join(map(str, paths))}:\n  " + "\n  ".join(problems))
    for key, values in found.items():
        state[key].copy_(torch.stack([value.double() for value in values]).mean(dim=0))
    return model


def store_mean(paths: Sequence[Path], out: Path) -> None:
    """Write the mean of some checkpoints, fp16, with the ends of their paths in its header.

    Raises:
        CheckpointError: as `mean_of`.
    """
    metadata = {"mean_of": ", ".join("/".join(path.parts[-3:]) for path in paths)}
    save_checkpoint(mean_of(paths), out, dtype=torch.float16, metadata=metadata)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.mean", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="where the mean goes, fp16")
    options = parser.parse_args()
    store_mean(options.checkpoints, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
