"""The SnapGen UNet cut into stages that convert alone, a handful of forms for all of it.

Shapes: Z latent channels, C channels, H W cells of a resolution, S = H W, T text tokens, J text
width, E time width. Values between stages are pictures, (1, C, H, W), or cells, (1, C, 1, S).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.mobile.unet import MobileResnetBlock, MobileTransformerBlock
from nanoflux_export.rewrites.conv1x1 import conv1x1
from nanoflux_export.rewrites.group_norm import RankFourGroupNorm
from nanoflux_mobile.models.snapgen import Rope, TransformerBlock
from nanoflux_mobile.models.snapgen_layers import ResnetBlock

Grid = tuple[int, int]
"""Rows and columns of cells."""


class LatentsStage(nn.Module):
    """Latents as the host passes them to the first picture."""

    def __init__(self, conv: nn.Conv2d, grid: Grid) -> None:
        super().__init__()
        self.conv, self.grid = conv, grid

    def forward(self, latents_OZOS: Tensor) -> Tensor:
        """(1, Z, 1, S) -> (1, C, H, W)."""
        return self.conv(latents_OZOS.reshape(1, -1, *self.grid))


class ResnetStage(nn.Module):
    """A residual block; on the way up it also reads what was kept on the way down."""

    def __init__(self, source: ResnetBlock) -> None:
        super().__init__()
        self.block = MobileResnetBlock(source)

    def forward(self, *values: Tensor) -> Tensor:
        """One picture or two, (1, cin, H, W) in all, and (1, E, 1, 1) -> (1, cout, H, W)."""
        *pictures, states_OEOO = values
        x = torch.cat(pictures, 1) if len(pictures) > 1 else pictures[0]
        return self.block(x, states_OEOO)


class CellsStage(nn.Module):
    """A picture to the row of cells that a transformer's layers see."""

    def __init__(self, norm: nn.GroupNorm, proj_in: nn.Linear) -> None:
        super().__init__()
        self.norm, self.proj = RankFourGroupNorm(norm), conv1x1(proj_in)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, H, W) -> (1, C, 1, S)."""
        return self.proj(self.norm(x).reshape(1, x.shape[1], 1, -1))


class LayerStage(nn.Module):
    """One layer of a transformer, the rotations of its cells as constants in it."""

    def __init__(self, source: TransformerBlock, rope: Rope | None) -> None:
        super().__init__()
        self.block = MobileTransformerBlock(source)
        self.tables = nn.ParameterList(
            nn.Parameter(table_SF.T[None, None].contiguous(), requires_grad=False)
            for table_SF in rope or ()
        )

    def forward(self, x_OCOS: Tensor, text_OJOT: Tensor) -> Tensor:
        """(1, C, 1, S) in and out."""
        tables = (self.tables[0], self.tables[1]) if len(self.tables) else None
        return self.block(x_OCOS, text_OJOT, tables)


class PictureStage(nn.Module):
    """The cells that came out of a transformer, added to the picture that went in."""

    def __init__(self, proj_out: nn.Linear) -> None:
        super().__init__()
        self.proj = conv1x1(proj_out)

    def forward(self, cells_OCOS: Tensor, x: Tensor) -> Tensor:
        """(1, C, 1, S) and (1, C, H, W) -> (1, C, H, W)."""
        return x + self.proj(cells_OCOS).reshape(x.shape)


class OutStage(nn.Module):
    """The last picture to the velocity, in the layout of the latents."""

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv2d) -> None:
        super().__init__()
        self.norm, self.conv = RankFourGroupNorm(norm), conv

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, H, W) -> (1, Z, 1, S)."""
        velocity_OZHW = self.conv(F.silu(self.norm(x)))
        return velocity_OZHW.reshape(1, velocity_OZHW.shape[1], 1, -1)
