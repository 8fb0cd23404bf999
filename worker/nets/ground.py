"""How far each pixel is from the ground, as the picture's border tells it.

A print design stands on something that reaches the frame. Its colour at each point is guessed from the four sides by a
Coons patch, which is exact for flat grounds and for linear gradients; the network sees the difference beside the
picture and learns how far to trust it.

Source: Coons 1967, Surfaces for computer-aided design of space forms; the use as a cue is our own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Width of the border strip that is averaged, and length of the averages along it, as shares of the picture's side.
STRIP = 1 / 64
ALONG = 1 / 8


def with_ground_cue(x: Tensor) -> Tensor:
    """A picture and, behind it, its ground cue: (B, C, H, W) -> (B, 2C, H, W)."""
    return torch.cat((x, ground_cue(x)), dim=1)


def ground_cue(x: Tensor) -> Tensor:
    """Absolute difference of a picture from the ground its border suggests: (B, C, H, W) -> (B, C, H, W), >= 0."""
    return (x - guessed_ground(x)).abs()


def guessed_ground(x: Tensor) -> Tensor:
    """The Coons patch of a picture's smoothed border: (B, C, H, W) -> (B, C, H, W)."""
    height, width = x.shape[2:]
    rows, columns = max(1, round(height * STRIP)), max(1, round(width * STRIP))
    top = _smoothed(x[:, :, :rows].mean(dim=2))  # (B, C, W)
    bottom = _smoothed(x[:, :, -rows:].mean(dim=2))
    left = _smoothed(x[:, :, :, :columns].mean(dim=3))  # (B, C, H)
    right = _smoothed(x[:, :, :, -columns:].mean(dim=3))
    down = torch.linspace(0, 1, height, device=x.device, dtype=x.dtype).view(-1, 1)
    across = torch.linspace(0, 1, width, device=x.device, dtype=x.dtype)
    vertical = torch.lerp(top.unsqueeze(2), bottom.unsqueeze(2), down)
    horizontal = torch.lerp(left.unsqueeze(3), right.unsqueeze(3), across)
    # Each corner is the mean of the two sides that meet there.
    first = torch.lerp((top[..., :1] + left[..., :1]) / 2, (top[..., -1:] + right[..., :1]) / 2, across)
    last = torch.lerp((bottom[..., :1] + left[..., -1:]) / 2, (bottom[..., -1:] + right[..., -1:]) / 2, across)
    return vertical + horizontal - torch.lerp(first.unsqueeze(2), last.unsqueeze(2), down)


def _smoothed(line: Tensor) -> Tensor:
    """Moving average along a border: (B, C, L) -> (B, C, L), the ends repeated."""
    reach = max(1, round(line.shape[2] * ALONG / 2))
    padded = F.pad(line, (reach, reach), mode="replicate")
    return F.avg_pool1d(padded, 2 * reach + 1, stride=1)
