"""Compiled passes (AOTInductor), kept as files beside the models: a second start compiles nothing.

A file holds code only. Weights stay the network's own and are handed over when the file is loaded, so a new checkpoint
needs no new file and models of one variant share theirs. Everything else that the code depends on is in its name.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from worker.nets.fast.graphs import Graphed
from worker.nets.fast.network import FastBiRefNet
from worker.nets.fast.own import told

log = structlog.get_logger(__name__)

_NETS = Path(__file__).resolve().parents[1]


def code_hash(folder: Path = _NETS) -> str:
    """A hash of every Python file of the networks: another form of the network is another program."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def artefact_key(net: FastBiRefNet, x: Tensor) -> dict[str, str]:
    """What a compiled pass of `net` on inputs like `x` depends on."""
    card = torch.cuda.get_device_name(x.device) if x.device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "card": card,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "code": code_hash(),
        "network": repr(net.config),
        "shape": "x".join(str(side) for side in x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
    }


def artefact_path(folder: Path, key: Mapping[str, str]) -> Path:
    """Where the compiled pass of this key lies: readable parts, then a hash of all of them."""
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:16]
    card = "".join(c if c.isalnum() else "-" for c in key["card"])
    return folder / f"{card}_{key['shape']}_{key['dtype']}_{digest}.pt2"


class Compiled(nn.Module):
    """A network whose passes are compiled once per input shape, or taken from the folder.

    A shape that cannot be compiled runs as usual, with one warning.
    """

    def __init__(self, net: FastBiRefNet, folder: Path) -> None:
        """
        Args:
            net: not packed (see `prepare_for_inference`).
        """
        super().__init__()
        self.net = net
        self._folder = folder
        self._passes: dict[torch.Size, Any] = {}

    def prepare(self, x: Tensor) -> None:
        """Have the pass for this shape ready; it holds addresses of the network's tensors from then on."""
        if x.shape not in self._passes:
            self._passes[x.shape] = self._load_or_compile(x)

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        y: Tensor = self._passes[x.shape](x)
        return y

    def _load_or_compile(self, x: Tensor) -> Any:
        path = artefact_path(self._folder, artefact_key(self.net, x))
        self.net(x)  # makes what depends on the size; its tensors belong to the network, not to the file
        try:
            if not path.is_file():
                compile_to(path, self.net, x)
                log.info("pass_compiled", file=path.name)
            return load_compiled(path, self.net)
        except Exception as exc:  # noqa: BLE001, RUF100 - the compiler raises whatever its parts raise; eager still works
            log.warning("compile_failed", file=path.name, detail=told(exc))
            return self.net


def compile_to(path: Path, net: nn.Module, x: Tensor) -> None:
    """Compile one pass of `net` on inputs like `x` into a file, written beside its place and then renamed.

    Raises:
        OSError: the folder cannot be written.
        Exception: whatever the compiler raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
        part = Path(folder) / path.name
        torch._inductor.aoti_compile_and_package(
            torch.export.export(net, (x,)),
            package_path=str(part),
            inductor_configs={"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True},
        )
        os.replace(part, path)  # noqa: PTH105 - atomic; another worker may do the same


def load_compiled(path: Path, net: nn.Module) -> Any:
    """A compiled pass with the weights of `net`, which it shares."""
    # Single-threaded: otherwise it asks an event whether the last pass has ended, which a recorded pass must not do.
    compiled = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    names = compiled.get_constant_fqns()
    compiled.load_constants({name: tensors[name] for name in names}, check_full_update=True, user_managed=True)
    return compiled


def accelerate(net: FastBiRefNet, device: torch.device, mode: str, folder: Path) -> nn.Module:
    """The network as COMPILE asks for it: `auto`, `off`, `graphs` or `aot`; without CUDA there are no graphs."""
    if mode == "auto":
        mode = "graphs"
    chosen: nn.Module = Compiled(net, folder) if mode == "aot" else net
    return Graphed(chosen) if device.type == "cuda" and mode != "off" else chosen
