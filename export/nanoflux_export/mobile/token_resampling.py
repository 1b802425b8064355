"""The resamplers of Progressive Token Downsampling in mobile form.

Shapes: every sequence is (1, D, 1, length), text first; the image part becomes (1, D, rows,
columns) for the convolutions, which is a view of the same values.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.rewrites.channel_norm import ChannelLayerNorm
from nanoflux_mobile.models.token_resampling import (
    Downsampler,
    Grid,
    ResidualBlock,
    Upsampler,
    half_grid,
)


def _frozen(conv: nn.Conv2d) -> nn.Conv2d:
    return copy.deepcopy(conv).requires_grad_(False)


def split_image(h: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(1, D, 1, T + rows * columns) -> text (1, D, 1, T), image (1, D, rows, columns)."""
    text = h.shape[3] - grid[0] * grid[1]
    return h[:, :, :, :text], h[:, :, :, text:].reshape(1, h.shape[1], *grid)


def join_image(text: Tensor, image: Tensor) -> Tensor:
    """The way back."""
    return torch.cat((text, image.reshape(1, image.shape[1], 1, -1)), 3)


class MobileResidualBlock(nn.Module):
    """Two 3x3 convolutions around channel norms, added to their input."""

    def __init__(self, source: ResidualBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = _frozen(source.conv1), _frozen(source.conv2)
        self.norm1, self.norm2 = ChannelLayerNorm(), ChannelLayerNorm()

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """(1, D, rows, columns) in and out; shift and scale are (1, D, 1, 1)."""
        h = self.norm1(x) * (1.0 + scale) + shift
        h = self.conv1(F.silu(h))
        return x + self.conv2(F.silu(self.norm2(h)))


class DownStage(nn.Module):
    """D: four image tokens become one, text passes."""

    def __init__(self, source: Downsampler, grid: Grid) -> None:
        super().__init__()
        self.resnet, self.conv = MobileResidualBlock(source.resnet), _frozen(source.conv)
        self.grid = grid

    def forward(self, h: Tensor, rows: Tensor) -> Tensor:
        """(1, D, 1, T + S) and rows (1, D, 1, 2) -> (1, D, 1, T + S/4)."""
        text, image = split_image(h, self.grid)
        return join_image(text, self.conv(self.resnet(image, *rows.split(1, 3))))


class UpStage(nn.Module):
    """U: one image token becomes four, text passes."""

    def __init__(self, source: Upsampler, grid: Grid) -> None:
        super().__init__()
        self.resnet_low = MobileResidualBlock(source.resnet_low)
        self.conv = _frozen(source.conv)
        self.resnet_full = MobileResidualBlock(source.resnet_full)
        self.grid = half_grid(grid)

    def forward(self, h: Tensor, rows: Tensor) -> Tensor:
        """(1, D, 1, T + S/4) and rows (1, D, 1, 4) -> (1, D, 1, T + S)."""
        text, image = split_image(h, self.grid)
        return join_image(text, self.raised(image, rows))

    def raised(self, image: Tensor, rows: Tensor) -> Tensor:
        """(1, D, rows/2, columns/2) -> (1, D, rows, columns)."""
        m = rows.split(1, 3)
        image = self.resnet_low(image, m[0], m[1])
        image = F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.resnet_full(self.conv(image), m[2], m[3])


class SkipUpStage(nn.Module):
    """U with a skip: what the low blocks changed is added to the image tokens D was given."""

    def __init__(self, source: Upsampler, grid: Grid) -> None:
        super().__init__()
        self.up, self.grid = UpStage(source, grid), grid

    def forward(self, h: Tensor, rows: Tensor, low: Tensor, full: Tensor) -> Tensor:
        """Of UpStage, with what D gave, (1, D, 1, T + S/4), and was given, (1, D, 1, T + S)."""
        text, image = split_image(h, self.up.grid)
        _, before = split_image(low, self.up.grid)
        _, around = split_image(full, self.grid)
        return join_image(text, around + self.up.raised(image - before, rows))
