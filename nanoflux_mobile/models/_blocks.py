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
