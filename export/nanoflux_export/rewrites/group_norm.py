"""Group norm in rank-4 operations that broadcast implicitly.

torch's group norm becomes rank-5 reshapes in Core ML and BROADCAST_TO in LiteRT, which the GPU
delegate rejects (LiteRT #9191).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RankFourGroupNorm(nn.Module):
    """The same function as the `nn.GroupNorm` it is made from, for batches of one."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight = nn.Parameter(norm.weight.detach()[None, :, None, None], requires_grad=False)
        self.bias = nn.Parameter(norm.bias.detach()[None, :, None, None], requires_grad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(1, C, H, W) in and out."""
        _, channels, height, width = x_BCHW.shape
        x = x_BCHW.reshape(1, self.groups, channels // self.groups, height * width)
        # Two single-axis means: over channels, then over pixels, so that no partial sum in fp16
        # runs over the whole plane at once.
        centred = x - x.mean(2, keepdim=True).mean(3, keepdim=True)
        variance = centred.square().mean(2, keepdim=True).mean(3, keepdim=True)
        normed = centred * torch.rsqrt(variance + self.eps)
        return normed.reshape(1, channels, height, width) * self.weight + self.bias


def replace_group_norms(module: nn.Module) -> nn.Module:
    """Swap every group norm inside `module`, in place; returns it."""
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, RankFourGroupNorm(child))
        else:
            replace_group_norms(child)
    return module
