"""One model on one device: weights in memory, batches of inputs to batches of masks."""

import hashlib
import os
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
import torch
from torch import Tensor

from shared.errors import DeviceFailed, FatalError, InferenceFailed, OutOfDeviceMemory
from shared.settings import Settings
from worker.nets import load_checkpoint
from worker.nets.fast import prepare_for_inference
from worker.nets.fast.compiled import accelerate
from worker.nets.fast.graphs import forget_recordings
from worker.registry import ModelSpec

log = structlog.get_logger(__name__)


def pick_device(settings: Settings) -> torch.device:
    """The device that DEVICE names; `auto` is CUDA where there is one.

    Raises:
        FatalError: CUDA is asked for by name and is not there.
    """
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FatalError(
            f"DEVICE={settings.device}, but torch sees no CUDA device; check nvidia-smi and the NVIDIA Container "
            "Toolkit, or set DEVICE=auto to run on the CPU"
        )
    return device


def configure_torch(settings: Settings) -> None:
    """Process-wide choices, made once before any model is loaded."""
    torch.set_num_threads(settings.cpu_threads or os.cpu_count() or 1)
    torch.set_grad_enabled(False)
    # The fp32 path is the reference on every device, and TF32 would quietly make it something else.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # Windows of two sizes in four groups, four stages and two passes are many shapes of attention per batch size, and
    # cuDNN, which torch may prefer on newer cards, builds a plan for each. The other kernels need none.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # cuDNN's guesses, not its search: that makes the first pass of a new batch size 1.3 to 3.6 s longer, and later ones
    # 2 % faster to 3 % slower (docs/performance.md). The one guess that was bad has a way around it (Conv).
    torch.backends.cudnn.benchmark = False


_HASHING = ThreadPoolExecutor(1, thread_name_prefix="hashing")


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Engine:
    """A model ready to compute.

    Attributes:
        spec: what is loaded.
        input_size: side of its square input, in pixels.
        device: where it lives. dtype: what it computes in; fp16 on CUDA when USE_FP16 is set, else fp32.
    """

    def __init__(
        self,
        spec: ModelSpec,
        device: torch.device,
        *,
        use_fp16: bool,
        compile_mode: str = "auto",
        compiled_dir: Path = Path("models/.compiled"),
    ) -> None:
        """Load the weights straight to the device and rewrite the network for inference.

        Args:
            compile_mode: as COMPILE in the settings. compiled_dir: where compiled passes are kept.
        Raises:
            CheckpointError: the file does not fit its network.
        """
        self.spec = spec
        self.device = device
        self.dtype = torch.float16 if use_fp16 and device.type == "cuda" else torch.float32
        self.input_size = spec.config.input_size
        # Beside loading and warm-up: hashing lets go of the interpreter lock, and the file is read once from the disk.
        self._weights_id = _HASHING.submit(_digest_of, spec.path)
        plain = load_checkpoint(spec.path, spec.config, device=device, dtype=self.dtype)
        net = prepare_for_inference(plain, pack=compile_mode != "aot")
        self._net = accelerate(net, device, compile_mode, compiled_dir)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def weights_id(self) -> str:
        """SHA-256 of its checkpoint: other weights under the same name have another."""
        return self._weights_id.result()

    def warm_up(self) -> float:
        """One forward pass on a grey picture, so that the first job does not pay for lazy initialisation.

        Returns:
            Seconds it took.
        """
        started = time.perf_counter()
        shape = (1, 3, self.input_size, self.input_size)
        self.masks(torch.zeros(shape, device=self.device, dtype=self.dtype))
        return time.perf_counter() - started

    @torch.inference_mode()
    def masks(self, batch: Tensor) -> Tensor:
        """Alpha of a batch.

        Args:
            batch: (B, 3, S, S) network inputs of this engine's device and dtype, S = input_size.
        Returns:
            (B, S, S) float32 in 0..1.
        Raises:
            OutOfDeviceMemory: the device has no room for this batch.
            InferenceFailed: the network gives no finite answer even in fp32, or the device fails.
        """
        try:
            # Our own kernels are launched on the thread's device.
            with torch.cuda.device_of(batch):  # type: ignore[no-untyped-call]
                logits = self._net(batch)[:, 0].float()
            if not torch.isfinite(logits).all():
                logits = self._repair(batch, logits)
            mask: Tensor = logits.sigmoid()
            return mask
        except torch.AcceleratorError as exc:
            # CUDA keeps such an error for the process's life: every later pass would fail as well.
            raise DeviceFailed(f"{self.name}: {self.device} has failed: {exc}") from exc
        except torch.OutOfMemoryError as exc:
            # What failed is still held by the frames that the error has come through.
            traceback.clear_frames(exc.__traceback__)
            forget_recordings()
            torch.cuda.empty_cache()
            raise OutOfDeviceMemory(f"{self.name} has no room on {self.device} for a batch of {len(batch)}") from exc
        except RuntimeError as exc:
            raise InferenceFailed(f"{self.name} failed on {self.device}: {exc}") from exc

    def _repair(self, batch: Tensor, logits: Tensor) -> Tensor:
        """Items that overflowed half precision, once more in fp32."""
        bad = (~torch.isfinite(logits)).flatten(1).any(dim=1).nonzero().flatten().tolist()
        log.warning("non_finite_output", model=self.name, items=len(bad), dtype=str(self.dtype))
        if self.dtype == torch.float32:
            raise InferenceFailed(f"{self.name} gave no finite answer for {len(bad)} of {len(batch)} pictures")
        # The plain network, loaded for this once: a copy that stays would cost twice the model for a rare event.
        exact = load_checkpoint(self.spec.path, self.spec.config, device=self.device)
        for item in bad:
            again = exact(batch[item : item + 1].float())[:, 0]
            if not torch.isfinite(again).all():
                raise InferenceFailed(f"{self.name} gave no finite answer, in half or in full precision")
            logits[item] = again[0]
        return logits
