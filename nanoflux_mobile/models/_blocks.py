"""What every modulated block of a FLUX transformer is made of.

Shapes: B batch, L tokens, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm(x_BLD: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6)


class Rows(nn.Module):
    """The AdaLN projection of one norm: a conditioning vector to its modulation rows."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, rows * width)
        self.rows = rows

    def forward(self, c_BD: Tensor) -> Tensor:
        """(B, D) -> (B, rows, D)."""
        return self.linear(F.silu(c_BD)).unflatten(1, (self.rows, -1))


class SeparableConv(nn.Module):
    """A 3x3 convolution per channel, then a 1x1 across them."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), out as many channels and a stride-th of each side."""
        return self.pointwise(self.depthwise(x))
