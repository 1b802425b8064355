"""SnapGen's tiny decoder: 16 latent channels to pixels, 8x, 36 times smaller than SD3's.

The paper publishes rules and two figures, 1.38 M parameters and 224 GMAC at 1024x1024, no table of
layers (arXiv 2412.09619). The rules: no attention, few norms, separable convolutions, thin, fewer
residual blocks where the picture is large, and no shortcut convolution, since the upsampling layers
change the number of channels.

Several layouts keep rules and figures; `SNAPGEN_DECODER` is ours, the lightest of three on memory.
Its residual blocks at full size work on 48 channels, 0.1 GB in fp16, and its largest map, the 160
channels before the last upsampling convolution, takes 0.34 GB; that of the others takes 0.54 GB.
Two more choices where the paper is silent: the convolution of an upsampling layer is a full 3x3,
and there is one group norm per resolution, at its end.

Shapes: B batch, C channels, Z latent channels, H W pixels, h w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.models._blocks import SeparableConv


@dataclass(frozen=True)
class TinyDecoderConfig:
    """Widths and residual blocks per resolution, the smallest resolution first."""

    latent_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    norm_num_groups: int
    scaling_factor: float
    shift_factor: float

    def __post_init__(self) -> None:
        """Refuse lists of different lengths."""
        if len(self.block_out_channels) != len(self.layers_per_block):
            raise ValueError(
                f"block_out_channels has {len(self.block_out_channels)} entries and "
                f"layers_per_block {len(self.layers_per_block)}; each resolution needs one of both"
            )

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


SNAPGEN_DECODER = TinyDecoderConfig(
    latent_channels=16,
    out_channels=3,
    block_out_channels=(192, 192, 160, 48),
    layers_per_block=(5, 2, 2, 2),
    norm_num_groups=16,
    scaling_factor=1.5305,
    shift_factor=0.0609,
)
"""The decoder of SnapGen's figures, on the latents of SD3."""


class ResidualBlock(nn.Module):
    """Two separable convolutions with SiLU before each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SeparableConv(channels)
        self.conv2 = SeparableConv(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape in and out."""
        return x_BCHW + self.conv2(F.silu(self.conv1(F.silu(x_BCHW))))


class Resolution(nn.Module):
    """Residual blocks of one width, then norm and SiLU for the convolution that follows."""

    def __init__(self, channels: int, depth: int, groups: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(depth))
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape in and out."""
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return F.silu(self.norm(x_BCHW))


class TinyDecoder(nn.Module):
    """Latents as the denoiser gives them to pixels."""

    def __init__(self, cfg: TinyDecoderConfig) -> None:
        super().__init__()
        widths = cfg.block_out_channels
        self.cfg = cfg
        self.conv_in = nn.Conv2d(cfg.latent_channels, widths[0], 3, padding=1)
        self.resolutions = nn.ModuleList(
            Resolution(width, depth, cfg.norm_num_groups)
            for width, depth in zip(widths, cfg.layers_per_block, strict=True)
        )
        self.upsamplers = nn.ModuleList(
            nn.Conv2d(cin, cout, 3, padding=1) for cin, cout in pairwise(widths)
        )
        self.conv_out = nn.Conv2d(widths[-1], cfg.out_channels, 3, padding=1)

    def decode(self, latents_BZhw: Tensor) -> Tensor:
        """Scaled latents (B, Z, h, w) -> pixels (B, 3, H, W), about [-1, 1]."""
        return self(latents_BZhw / self.cfg.scaling_factor + self.cfg.shift_factor)

    def forward(self, z_BZhw: Tensor) -> Tensor:
        """Unscaled latents (B, Z, h, w) -> pixels (B, 3, H, W), about [-1, 1]."""
        x = self.resolutions[0](self.conv_in(z_BZhw))
        for upsampler, resolution in zip(self.upsamplers, self.resolutions[1:], strict=True):
            x = resolution(upsampler(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.conv_out(x)
