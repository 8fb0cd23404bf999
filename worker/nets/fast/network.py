"""A loaded network rewritten for inference: the same function, exactly, in less time."""

import torch
from torch import Tensor, nn

from worker.nets.birefnet import BiRefNet
from worker.nets.decoder import DecoderBlock
from worker.nets.decoder import resize as resize_nchw
from worker.nets.efficientnet import EfficientNet
from worker.nets.fast.decoder import FastBlock, FastDecoder
from worker.nets.fast.efficientnet import FastConvNorm, FastEfficientNet
from worker.nets.fast.layers import Linear, resize
from worker.nets.fast.swin import FastSwin
from worker.nets.ground import with_ground_cue
from worker.nets.swin import Swin


class FastBiRefNet(nn.Module):
    """BiRefNet for inference; made by `prepare_for_inference`.

    Shapes: (B, 3, H, W) ImageNet-normalised RGB -> (B, 1, H, W) logits; H and W as in the plain network.
    """

    def __init__(self, plain: BiRefNet) -> None:
        super().__init__()
        self.config = plain.config
        self.backbone = _fast_backbone(plain.bb)
        squeeze = plain.squeeze_module[0]
        assert isinstance(squeeze, DecoderBlock)
        self.squeeze = FastBlock(squeeze, (sum(self.config.lateral_widths),))
        self.decoder = FastDecoder(plain.decoder, self.config.lateral_widths)
        self.kept = nn.Module()

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.config.check_size(x.shape)
        if self.config.ground_cue:
            x = with_ground_cue(x)
        *fine, a1, a2, a3, a4 = self.backbone(x)
        full = [a1, a2, a3, a4]
        half = self.backbone(resize_nchw(x, (height // 2, width // 2)))[-4:]
        size = (full[3].shape[1], full[3].shape[2])
        context = []
        for a, b in zip(full, half, strict=True):
            context += [resize(a, size), _enlarged_then_resized(b, (a.shape[1], a.shape[2]), size, self.kept)]
        return self.decoder(x, full[:3], half[:3], self.squeeze(torch.cat(context, dim=-1)), *fine)


def _fast_backbone(plain: nn.Module) -> nn.Module:
    if isinstance(plain, EfficientNet):
        return FastEfficientNet(plain)
    assert isinstance(plain, Swin)
    return FastSwin(plain)


def _enlarged_then_resized(x: Tensor, between: tuple[int, int], size: tuple[int, int], kept: nn.Module) -> Tensor:
    """resize(resize(x, between), size) without the large map: both are linear along each axis. (B, H, W, C)."""
    if between == size:
        return resize(x, size)
    batch, height, width, channels = x.shape
    rows = _resize_matrix(height, between[0], size[0], x, kept)  # (out, in)
    columns = _resize_matrix(width, between[1], size[1], x, kept)
    x = (rows @ x.reshape(batch, height, -1)).view(batch * size[0], width, channels)
    return (columns @ x).view(batch, *size, channels)


def _resize_matrix(length: int, between: int, out: int, like: Tensor, kept: nn.Module) -> Tensor:
    """(out, length): what two resizes in a row do to one axis; each row has at most four weights."""
    if like.device.type != "cuda" or torch.compiler.is_compiling():
        return _two_resizes(length, between, out, like)
    # On a card they are some thirty launches of a pass: the first one makes them, as buffers (graphs.py says why).
    key = f"resize{length}_{between}_{out}"
    if not hasattr(kept, key):
        kept.register_buffer(key, _two_resizes(length, between, out, like), persistent=False)
    return kept.get_buffer(key)


def _two_resizes(length: int, between: int, out: int, like: Tensor) -> Tensor:
    eye = torch.eye(length, device=like.device).view(1, length, length, 1)
    return resize(resize(eye, (between, length)), (out, length)).view(out, length).to(like.dtype)


@torch.no_grad()
def prepare_for_inference(model: BiRefNet, *, pack: bool = True) -> FastBiRefNet:
    """Rewrite a loaded network for inference, on its device and in its type.

    `model` stays as it is; large weights that need no change share its memory, so drop it or leave its weights alone.
    The result cannot be trained, moved or saved.

    Args:
        model: in evaluation mode.
        pack: lay weights out for the CPU's matrix kernels, where there are such. Not for a network to be compiled.
    Raises:
        ValueError: `model` is in training mode, where batch norms are another function.
    """
    if model.training:
        raise ValueError("the network is in training mode; call eval() first")
    net = FastBiRefNet(model).eval().requires_grad_(False)
    for module in net.modules():
        if pack and isinstance(module, Linear | FastConvNorm):
            module.pack()
    return net
