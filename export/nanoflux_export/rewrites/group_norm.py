"""Group norm in rank-4 operations that broadcast implicitly.

torch's group norm becomes rank-5 reshapes in Core ML and BROADCAST_TO in LiteRT, which the GPU
delegate rejects (LiteRT #9191).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanoflux_export.rewrites.channel_norm import reduced


class RankFourGroupNorm(nn.Module):
    """The same function as the `nn.GroupNorm` it is made from, for batches of one.

    It has a `divisor` as channel norms do.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps, self.divisor = norm.num_groups, norm.eps, 1.0
        self.weight = nn.Parameter(norm.weight.detach()[None, :, None, None], requires_grad=False)
        self.bias = nn.Parameter(norm.bias.detach()[None, :, None, None], requires_grad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(1, C, H, W) in and out."""
        _, channels, height, width = x_BCHW.shape
        # Rows join the channels and columns stay the last axis, so that nothing moves in memory on
        # a Neural Engine.
        groups = x_BCHW.reshape(1, self.groups, channels // self.groups * height, width)
        x = reduced(groups, self.divisor)
        # Two single-axis means, so that no partial sum in fp16 runs over all of a group at once.
        centred = x - x.mean(2, keepdim=True).mean(3, keepdim=True)
        variance = centred.square().mean(2, keepdim=True).mean(3, keepdim=True)
        normed = centred * torch.rsqrt(variance + self.eps / self.divisor**2)
        return normed.reshape(1, channels, height, width) * self.weight + self.bias


def replace_group_norms(module: nn.Module) -> nn.Module:
    """Swap every group norm inside `module`, in place; returns it."""
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, RankFourGroupNorm(child))
        else:
            replace_group_norms(child)
    return module
