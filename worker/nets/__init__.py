"""The networks only: BiRefNet in every variant, and its checkpoints."""

from worker.nets.birefnet import BiRefNet
from worker.nets.config import CONFIGS, BiRefNetConfig, SwinConfig
from worker.nets.weights import CheckpointError, load_checkpoint, save_checkpoint

__all__ = [
    "CONFIGS",
    "BiRefNet",
    "BiRefNetConfig",
    "CheckpointError",
    "SwinConfig",
    "load_checkpoint",
    "save_checkpoint",
]
