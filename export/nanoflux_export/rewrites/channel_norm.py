"""Layer norm and RMS norm over the channel axis of (1, C, 1, S) or the third of (1, H, K, S).

Written with primitive operations: Core ML's converter fuses the layer norm back into one op, and
LiteRT has no fused one to lose.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channel_layer_norm(x_BCOS: Tensor, eps: float = 1e-6) -> Tensor:
    """Zero mean and unit variance over axis 1, without weights."""
    centred = x_BCOS - x_BCOS.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)


class ChannelRMSNorm(nn.Module):
    """Scale by the root mean square over `axis`, then by a weight per entry of it."""

    def __init__(self, weight_C: Tensor, eps: float, axis: int = 1) -> None:
        super().__init__()
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        self.weight = nn.Parameter(weight_C.detach().reshape(shape).clone(), requires_grad=False)
        self.eps, self.axis = eps, axis

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out, rank 4."""
        mean = x.square().mean(self.axis, keepdim=True)
        return x * torch.rsqrt(mean + self.eps) * self.weight
