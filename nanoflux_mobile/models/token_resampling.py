"""Progressive Token Downsampling of NanoFLUX: four image tokens become one, and four again.

Shapes: B batch, S image tokens of the full grid, T text tokens, L = T + S, A axes of a position,
D width, N modulation rows, h w rows and columns of the low grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.models._blocks import Rows, SeparableConv, layer_norm

Grid = tuple[int, int]
"""Rows and columns of image tokens."""


def square_grid(tokens: int) -> Grid:
    """Rows and columns of a square picture; ValueError if so many tokens make none."""
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{tokens} image tokens are no square; give their grid")
    return side, side


def half_grid(grid: Grid) -> Grid:
    """The grid of a low step; ValueError if its cells are not whole."""
    if grid[0] % 2 or grid[1] % 2:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} does not split into 2 x 2 cells")
    return grid[0] // 2, grid[1] // 2


def low_ids(ids_LA: Tensor, grid: Grid) -> Tensor:
    """Positions of a low step's joint sequence, of which those of the full one are given.

    A low token sits in the middle of the four it replaces, at (2i + 0.5, 2j + 0.5), so distances
    keep their scale and the angles stay within those the blocks know. The paper keeps separate
    position grids and does not say how the low one is scaled; this is our choice.
    """
    rows, columns = half_grid(grid)
    text = len(ids_LA) - grid[0] * grid[1]
    cells = ids_LA[text:].unflatten(0, (rows, 2, columns, 2)).mean((1, 3))
    return torch.cat((ids_LA[:text], cells.flatten(0, 1)))


def convolve(conv: nn.Module, x_BSD: Tensor, grid: Grid) -> Tensor:
    """Tokens through a convolution over their grid, as tokens again."""
    return conv(x_BSD.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


def conv3x3(width: int, separable: bool, stride: int = 1) -> nn.Conv2d | SeparableConv:
    """A full convolution as the paper has it, or its separable form with an eighth of the weights.

    In a small network full ones weigh out of proportion: D and U have 72 D^2 weights, which is as
    much as six of its single blocks.
    """
    if separable:
        return SeparableConv(width, stride)
    return nn.Conv2d(width, width, 3, stride=stride, padding=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions over image tokens, added to their input.

    The paper says ResNet block with a time-conditioned scale and shift. What it leaves open is our
    choice: both norms are those of the transformer, over channels and without weights, scale and
    shift follow the first, and SiLU comes before each convolution.
    """

    def __init__(self, width: int, adaln: bool, separable: bool = False) -> None:
        super().__init__()
        if adaln:
            self.norm = Rows(width, 2)
        self.conv1 = conv3x3(width, separable)
        self.conv2 = conv3x3(width, separable)

    def rows(self, c_BD: Tensor) -> Tensor:
        """(B, 2, D): shift, scale."""
        return self.norm(c_BD)

    def forward(self, x_BSD: Tensor, rows_BND: Tensor, grid: Grid) -> Tensor:
        """Same shape in and out."""
        shift, scale = rows_BND[:, :, None].unbind(1)
        h_BSD = layer_norm(x_BSD) * (1 + scale) + shift
        h_BSD = convolve(self.conv1, F.silu(h_BSD), grid)
        return x_BSD + convolve(self.conv2, F.silu(layer_norm(h_BSD)), grid)


class Downsampler(nn.Module):
    """D of NanoFLUX: a residual block, then a 3x3 convolution of stride 2."""

    def __init__(self, width: int, adaln: bool, separable: bool = False) -> None:
        super().__init__()
        self.resnet = ResidualBlock(width, adaln, separable)
        self.conv = conv3x3(width, separable, stride=2)

    def rows(self, c_BD: Tensor) -> Tensor:
        """(B, 2, D): shift, scale."""
        return self.resnet.rows(c_BD)

    def forward(self, x_BSD: Tensor, rows_BND: Tensor, grid: Grid) -> Tensor:
        """(B, S, D) on `grid` -> (B, S/4, D); ValueError for a grid of odd sides."""
        half_grid(grid)
        return convolve(self.conv, self.resnet(x_BSD, rows_BND, grid), grid)


class Upsampler(nn.Module):
    """U of NanoFLUX: a residual block, twice the side, a 3x3 convolution, a residual block."""

    def __init__(self, width: int, adaln: bool, separable: bool = False) -> None:
        super().__init__()
        self.resnet_low = ResidualBlock(width, adaln, separable)
        self.conv = conv3x3(width, separable)
        self.resnet_full = ResidualBlock(width, adaln, separable)

    def rows(self, c_BD: Tensor) -> Tensor:
        """(B, 4, D): shift and scale of the low block, then of the full one."""
        return torch.cat((self.resnet_low.rows(c_BD), self.resnet_full.rows(c_BD)), 1)

    def forward(self, x_BSD: Tensor, rows_BND: Tensor, grid: Grid) -> Tensor:
        """(B, S/4, D) -> (B, S, D) on `grid`."""
        low = half_grid(grid)
        x_BSD = self.resnet_low(x_BSD, rows_BND[:, :2], low)
        x_BDhw = x_BSD.transpose(1, 2).unflatten(2, low)
        x_BDHW = F.interpolate(x_BDhw, scale_factor=2.0, mode="bilinear", align_corners=False)
        x_BSD = convolve(self.conv, x_BDHW.flatten(2).transpose(1, 2), grid)
        return self.resnet_full(x_BSD, rows_BND[:, 2:], grid)
