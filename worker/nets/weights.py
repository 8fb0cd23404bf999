"""Read and write checkpoints of the official key layout: safetensors only, so a file can carry no code."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import FatalError
from worker.nets.birefnet import BiRefNet
from worker.nets.config import BiRefNetConfig

#: Buffers that published files carry or leave out; both are right, we keep the ones we built.
_OPTIONAL = ("relative_position_index", "num_batches_tracked")


class CheckpointError(FatalError):
    """A checkpoint does not fit its network, or is not readable. The message lists every key that differs."""


def check_keys(expected: Mapping[str, torch.Size], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Compare key layouts.

    Returns:
        One line per missing, extra or misshapen key, in that order; empty when the layouts agree.
    """
    problems = [
        f"missing: {key} {tuple(expected[key])}"
        for key in sorted(expected.keys() - found.keys())
        if not key.endswith(_OPTIONAL)
    ]
    problems += [f"extra: {key} {tuple(found[key])}" for key in sorted(found.keys() - expected.keys())]
    problems += [
        f"shape: {key} is {tuple(found[key])} in the file, {tuple(expected[key])} in the network"
        for key in sorted(expected.keys() & found.keys())
        if tuple(found[key]) != tuple(expected[key])
    ]
    return problems


def load_checkpoint(
    path: Path | str,
    config: BiRefNetConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BiRefNet:
    """Build a network in evaluation mode and fill it from a file.

    Args:
        path: safetensors file of the official key layout, fp16 or fp32.
        config: the variant the file was made for.
        device: where the network shall live; tensors go there straight from the file.
        dtype: floating-point type of the loaded network.
    Raises:
        CheckpointError: unreadable, or any key missing, extra or misshapen; all of them are listed.
    """
    with torch.device("meta"):
        model = BiRefNet(config)
    state = model.state_dict()
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - a handle, not a dict
            problems = check_keys({key: value.shape for key, value in state.items()}, found)
            if problems:
                raise CheckpointError(
                    f"{path} does not fit its network ({len(problems)} keys):\n  " + "\n  ".join(problems)
                )
            # Integer buffers keep their type; everything else takes the asked one.
            loaded = {
                key: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for key, tensor in ((key, file.get_tensor(key)) for key in found)
            }
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path} cannot be read as safetensors: {exc}") from exc
    fill_in(model, loaded, torch.device(device))
    return model.eval()


def fill_in(model: BiRefNet, loaded: dict[str, Tensor], device: torch.device) -> None:
    """Put tensors in place of a network built on the meta device, rebuilding what files may leave out."""
    for name, buffer in list(model.named_buffers()):
        if name.endswith("relative_position_index"):
            module = model.get_submodule(name.rpartition(".")[0])
            window = int(buffer.shape[0] ** 0.5)
            # Always our own: a file's copy could only be equal or wrong.
            loaded[name] = type(module)._index(window).to(device)  # type: ignore[attr-defined]
        elif name.endswith("num_batches_tracked") and name not in loaded:
            loaded[name] = torch.zeros((), dtype=torch.int64, device=device)
    model.load_state_dict(loaded, strict=True, assign=True)
    model.requires_grad_(False)


def save_checkpoint(
    model: BiRefNet,
    path: Path | str,
    *,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network in the official layout, beside its place and then renamed.

    Args:
        model: the network; its training state is left alone.
        path: the safetensors file to write.
        dtype: floating-point type in the file.
        metadata: text stored in the file's header.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        key: (value.detach().to("cpu", dtype) if value.is_floating_point() else value.detach().cpu()).contiguous()
        for key, value in model.state_dict().items()
        if not key.endswith(_OPTIONAL)
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file(state, part, metadata={"format": "pt", **(metadata or {})})
    part.chmod(0o644)  # safetensors makes it private, but containers read it as another user
    part.replace(path)
