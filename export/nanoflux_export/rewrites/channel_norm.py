"""Layer norm and RMS norm over the channel axis of (1, C, 1, S) or the third of (1, H, K, S).

Written with primitive operations: Core ML's converter fuses the layer norm back into one op, and
LiteRT has no fused one to lose.

Norms square what they take, and half precision ends at 65504, so values beyond 256 are lost. With a
`divisor`, a power of two, they square x / divisor instead and divide eps by its square, which gives
equal numbers in float32: scale_folding chooses it from what was measured.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def reduced(x: Tensor, divisor: float) -> Tensor:
    """x / divisor, without an operation where that is x."""
    return x if divisor == 1.0 else x * (1.0 / divisor)


def channel_layer_norm(x_BCOS: Tensor, eps: float = 1e-6, divisor: float = 1.0) -> Tensor:
    """Zero mean and unit variance over axis 1, without weights."""
    x_BCOS = reduced(x_BCOS, divisor)
    centred = x_BCOS - x_BCOS.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + eps / divisor**2)


class ChannelLayerNorm(nn.Module):
    """Zero mean and unit variance over axis 1, without weights."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.divisor = eps, 1.0

    def forward(self, x_BCOS: Tensor) -> Tensor:
        """Same shape in and out."""
        return channel_layer_norm(x_BCOS, self.eps, self.divisor)


class ChannelRMSNorm(nn.Module):
    """Scale by the root mean square over `axis`, then by a weight per entry of it."""

    def __init__(self, weight_C: Tensor, eps: float, axis: int = 1) -> None:
        super().__init__()
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        self.weight = nn.Parameter(weight_C.detach().reshape(shape).clone(), requires_grad=False)
        self.eps, self.axis, self.divisor = eps, axis, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out, rank 4."""
        x = reduced(x, self.divisor)
        mean = x.square().mean(self.axis, keepdim=True)
        return x * torch.rsqrt(mean + self.eps / self.divisor**2) * self.weight
